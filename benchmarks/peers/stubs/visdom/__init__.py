"""Stands in for visdom, which adv-lib imports for its optional plots only; nothing here is ever called."""
