"""A real kernel limit instead of a patched one: RLIMIT_FSIZE in a child process."""

import subprocess
import sys

from dure_coordinator.spool import Spool

CHILD = """
import os, resource, sys
from pathlib import Path
from dure.blobs import BlobStore, DiskFull
from dure_coordinator.spool import Spool
folder = Path(sys.argv[1])
store = BlobStore(folder / "blobs")
spool = Spool(folder, b"k" * 32, length=5 * 4096, chunk_bytes=4096)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    store.put_bytes(bytes(20_000), chunk_bytes=4096)
except DiskFull:
    print("blob", len(store.ids()), len(list((folder / "blobs" / "tmp").iterdir())))
try:
    for k in range(5):
        spool.write(k, bytes([k]) * 4096)
except DiskFull:
    print("spool", spool.received_chunks, spool.sync(), spool.path.stat().st_size)
sys.stdout.flush()
os._exit(9)  # no tidying: the next process finds what a kill leaves
"""


def test_file_that_may_not_grow_is_a_full_disk_and_the_upload_goes_on_elsewhere(tmp_path):
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["blob 0 0", "spool 2 2 8192"], done.stderr
    spool = Spool(tmp_path, b"k" * 32, length=5 * 4096, chunk_bytes=4096)
    assert spool.durable_chunks() == 2
    for k in range(2, 5):
        spool.write(k, bytes([k]) * 4096)
    spool.finish(spool.root())
