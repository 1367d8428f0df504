"""Run inside an environment: import each named module; the last line of output says what happened, as JSON."""

import importlib
import json
import sys


def first_failure(modules: list[str]) -> dict[str, str]:
    """{} if all can be imported, else the module and the error in one line."""
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:
            return {"module": module, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    return {}


if __name__ == "__main__":
    print("\n" + json.dumps(first_failure(sys.argv[1:])), flush=True)
