# Written by python -m lmms_eval_emi.harness.lmms_eval.write_tasks from the study; edit that instead.
"""Hooks of the tasks beside this file, bound to their study."""

from lmms_eval_emi.harness.lmms_eval.hooks import study_hooks

_hooks = study_hooks("natural")

process_docs = _hooks.process_docs
doc_to_visual = _hooks.doc_to_visual
doc_to_text = _hooks.doc_to_text
doc_to_target = _hooks.doc_to_target
process_results = _hooks.process_results
emi = _hooks.emi
emid = _hooks.emid
emid_bound = _hooks.emid_bound
