"""Errors that a user can cause or fix. Anything else that is raised is a bug of this package.

The command line prints an :class:`EMIError` as one line and exits with 1. All children can be imported from
:mod:`lmms_eval_emi`.
"""

from __future__ import annotations


class EMIError(Exception):
    """Base class. The message says what was expected, what came, and what to do."""


class InputError(EMIError, ValueError):
    """An argument, option, setting or file content has a value that is not accepted."""


class StudyError(EMIError):
    """A study, suite, task or dataset is missing or cannot be read."""


class MissingDatasetError(StudyError):
    """A dataset is neither on this machine nor can it be fetched."""


class ResponsesError(EMIError):
    """Responses are missing, cannot be read, or cannot be joined with the rows of their study."""


class SampleError(EMIError):
    """A row cannot be used; the message names it."""


class ImageError(SampleError):
    """An image cannot be read."""


class ShiftError(EMIError):
    """A shift operator is unknown, lacks what it needs, or cannot be applied."""


class UnavailableError(EMIError):
    """An encoder, an estimator, a package or a download is missing, or two of them do not fit each other."""


class ResultsError(EMIError):
    """A file of results, scores, samples or embeddings is missing, damaged, or not comparable."""


class EndpointError(EMIError):
    """A model endpoint is not configured, does not answer, or answers with something unusable."""


class OutputError(EMIError):
    """An output cannot be written where it was asked for."""


class RunError(EMIError):
    """A run of the harness cannot start, continue, or be scored."""
