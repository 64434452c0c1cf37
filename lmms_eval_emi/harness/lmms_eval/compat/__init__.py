"""Everything that this package assumes about lmms-eval (measured on 0.7.3), a file for each kind of assumption.

Nothing else imports, patches or inspects lmms-eval. Each function says what it relies on, and
``tests/harness/lmms_eval/test_contract.py`` has a test for each.
"""
