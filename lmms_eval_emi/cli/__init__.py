"""The command line ``lmms-eval-emi``: one module per command, imported when it is asked for."""

from lmms_eval_emi.cli.commands import command, main

__all__ = ["command", "main"]
