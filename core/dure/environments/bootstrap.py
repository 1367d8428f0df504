"""Run a module in an app's environment: `python -I bootstrap.py FOLDER MODULE ARGUMENT…`, with any interpreter.

FOLDER (what `runtime` lends) comes last on the path: where the environment has a package of its own, that one is used.
"""

import runpy
import sys

if __name__ == "__main__":
    _, folder, module, *rest = sys.argv
    sys.path.append(folder)
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
