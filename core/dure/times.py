"""Times that peers name, in unix seconds."""

from __future__ import annotations

LATEST_S = 253_402_300_799
"""9999-12-31T23:59:59Z. What no calendar can show is no time: it would end every command that shows it, a release for one."""
