"""The suite by which a backend proves itself, cachekit's own and third parties' alike.

    from cachekit.testing import BackendContract

    class TestMine(BackendContract):
        def make_backend(self, namespace):
            return MyBackend("mine://localhost", namespace=namespace, timeout=0.25)

Every test runs in both worlds. ``Suite`` has the attributes by which a subclass tells what its
backend can not do (``ttl_granularity``, ``max_value``, ``exact``) and how time is moved. A
server comes from a fixture of the subclass's own, marked ``autouse``, that sets an attribute.
"""

from __future__ import annotations

from .batches import BatchesContract
from .buses import BusContract
from .nonces import NoncesContract
from .races import RacesContract
from .records import RecordsContract
from .slots import SlotsContract
from .tags import TagBlocksContract


class BackendContract(
    RecordsContract,
    SlotsContract,
    BatchesContract,
    NoncesContract,
    TagBlocksContract,
    BusContract,
    RacesContract,
):
    """Subclass in a test module and define ``make_backend(self, namespace)``."""
