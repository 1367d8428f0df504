"""What can be wrong with a release, each with an exit code of its own, so that a script knows without reading the line.

DureError
├── ExtraFiles       8   a file nobody signed
├── MissingFiles     9   a signed file is not there
├── ContentDiffers  10   a file, or a tensor in it, is not what was signed
├── OtherDtype      11   weights in another dtype
├── OtherShape      12   weights of another architecture
└── NotSigned        3   not by whom the charter names, or by too few
"""

from __future__ import annotations

from dure.errors import DureError, NotAuthorised


class ExtraFiles(DureError):
    """Files that no signature covers; they could be loaded instead of those that are."""

    exit_code = 8


class MissingFiles(DureError):
    """Files that were signed are not there."""

    exit_code = 9


class ContentDiffers(DureError):
    """A file, or a tensor in it, is not what was signed."""

    exit_code = 10


class OtherDtype(DureError):
    """Weights are in another dtype."""

    exit_code = 11


class OtherShape(DureError):
    """Weights are of another architecture: other tensors, or of other shapes."""

    exit_code = 12


class NotSigned(NotAuthorised):
    """A signature is not by whom the charter names, or there are too few."""
