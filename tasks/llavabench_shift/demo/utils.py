# Written by python -m lmms_eval_emi.harness.lmms_eval.write_tasks from the study; edit that instead.
"""Hooks of the tasks beside this file, bound to their study."""

from pathlib import Path

from lmms_eval_emi.harness.lmms_eval.hooks import study_hooks

_hooks = study_hooks(str(Path(__file__).with_name("study.yaml")))

process_docs = _hooks.process_docs
doc_to_visual = _hooks.doc_to_visual
doc_to_text = _hooks.doc_to_text
doc_to_target = _hooks.doc_to_target
process_results = _hooks.process_results
emi = _hooks.emi
emid = _hooks.emid
emid_bound = _hooks.emid_bound
process_docs_clean = _hooks.process_docs_of("clean")
process_docs_defocus_blur_1 = _hooks.process_docs_of("defocus_blur_1")
process_docs_defocus_blur_3 = _hooks.process_docs_of("defocus_blur_3")
process_docs_defocus_blur_5 = _hooks.process_docs_of("defocus_blur_5")
process_docs_fog_1 = _hooks.process_docs_of("fog_1")
process_docs_fog_5 = _hooks.process_docs_of("fog_5")
process_docs_keyboard_3 = _hooks.process_docs_of("keyboard_3")
process_docs_keyboard_7 = _hooks.process_docs_of("keyboard_7")
process_docs_synonym_7 = _hooks.process_docs_of("synonym_7")
process_docs_defocus_blur_3_keyboard_3 = _hooks.process_docs_of("defocus_blur_3_keyboard_3")
process_docs_defocus_blur_5_keyboard_7 = _hooks.process_docs_of("defocus_blur_5_keyboard_7")
process_docs_fog_5_synonym_7 = _hooks.process_docs_of("fog_5_synonym_7")
process_docs_fresh = _hooks.process_docs_of("fresh")
