"""Studies as data: their schema, the YAML files of the built-in ones, and the usual names of columns."""
