"""The mathematics: tensors in, figures out. Nothing here prints, reads files or knows a harness."""
