"""Pictures encoded once, into shards that training reads from then on.

The source is cut into parts of `shard_size` pictures by their numbers; part k falls to process k mod N. A part is made
whole or not at all, from its own pictures alone, so kills, new starts and any number of processes end in the same
bytes. On a CPU every picture is encoded by itself on one thread, several of them at once: neither batches nor threads
change a bit. On a GPU a batch is the next `batch_size` pictures of one size in the part, wherever a run began.
"""

from .census import survey
from .config import PrepareConfig
from .work import prepare

__all__ = ["PrepareConfig", "prepare", "survey"]
