"""Task files for lmms-eval; the folder is also what ``--include_path`` takes."""
