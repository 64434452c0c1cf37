"""The mathematics: tensors in, scores out. Nothing here prints, reads files or knows a harness."""
