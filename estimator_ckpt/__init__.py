"""Registry of estimators, and the files of those that the package itself holds."""
