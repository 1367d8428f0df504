"""Environments: the packages an app runs with, made offline from its lock and a folder of wheels (docs/spec/environments.md).

`lock` reads what an app says, `wheels` compares it with a folder, `prepare` builds, `runtime` lends the worker's own packages, `place`
finds what is there, `bootstrap` and `check` run inside. An edge: it reads folders and starts processes.
"""
