"""The work of one process: its share of the parts, made one after the other."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..codec.base import codec_from, completed
from ..codec.config import CodecConfig
from ..config import to_dict
from ..data.base import Source
from ..data.parts import FORMAT, Index, Settings, Skipped
from ..data.streams import Stream
from ..errors import UserError
from ..text.config import TextConfig
from ..train.job import stop_asked
from ..train.log import say
from .captions import encode_captions, encoder_of
from .config import PrepareConfig
from .cut import Cut
from .encode import Encoded, Encoder, threads
from .folder import Making, PartWriter
from .place import Place
from .progress import Progress


def prepare(
    source: Source | Iterable[Any],
    codec: CodecConfig,
    output: str | Path,
    config: PrepareConfig = PrepareConfig(),  # noqa: B008 (frozen)
    *,
    text: TextConfig = TextConfig(),  # noqa: B008 (frozen)
    name: str = "Python",
) -> Index | None:
    """Encode a source into the folder `output`, or go on with that. Under torchrun every process calls this.

    `text`: the frozen encoder that captions are encoded with besides, once the pictures are done; none unless given.
    A source is what `open_source` gives, or any iterable of what `data.streams.Stream` takes; one that can only be
    walked must give the same in the same order at every start. Returns the index, or None where other processes are
    still at work. UserError for settings that differ from those of the folder, for mixed sizes, for too many corrupt
    pictures, for missing captions where they are to be encoded; what is done is kept. SIGTERM and Ctrl-C leave by
    SystemExit.
    """
    here = Place.here()
    source = source if hasattr(source, "class_names") else Stream(source)
    codec = completed(replace(codec, kind="pixels") if codec.kind == "auto" and not codec.source else codec)
    encoder = Encoder(codec_from(codec).to(here.device), config, len(source.class_names), here.device)
    dtype = encoder.try_out()
    cut = Cut(source, config.shard_size)
    if cut.count == 0:
        raise UserError(f"{name!r} holds no pictures")
    settings = Settings(
        format=FORMAT,
        codec=to_dict(codec),
        dtype=dtype,
        flips=config.flips,
        size=config.size,
        buckets=config.buckets,
        shard_size=config.shard_size,
        class_names=tuple(source.class_names),
        source=cut.origin(name),
    )
    texts = encoder_of(text, source, Path(output))
    making = Making(Path(output), settings, cut, config.max_corrupt)
    making.settle()
    work(making, encoder, here)
    index = making.finish()
    if index is not None and texts is not None and encode_captions(Path(output), texts, here) is None:
        index = None
    if index is None:
        say(f"process {here.rank} of {here.size} is done; others are still at work in {output}")
    return index


def work(making: Making, encoder: Encoder, here: Place) -> None:
    """Make every part that is this process's and not done yet."""
    size, count = making.settings.shard_size, making.cut.count
    own = range(here.rank, math.ceil((count or 0) / size), here.size)
    total = sum(min(size, count - number * size) for number in own) if count else None
    workers = encoder.config.workers or here.cpus
    with (
        threads(workers) as pool,
        stop_asked() as asked,
        Progress(total, shown=here.rank == 0) as progress,
    ):
        for number, jobs in making.cut:
            if number % here.size != here.rank:
                continue
            if part := making.hear(number):
                progress.skip(part.items)
                continue
            making.hear_all()
            making.check()
            while making.hear(number) is None:
                with making.part(number) as writer:
                    if writer is None:
                        time.sleep(0.1)  # another process is at it, though it should not
                        stop_if(asked, making, here)
                        continue
                    for one in encoder.results(pool, jobs, depth=2 * workers):
                        stop_if(asked, making, here)
                        put(one, writer, making, encoder)
                        progress.step()


def put(one: Encoded | Skipped, writer: PartWriter, making: Making, encoder: Encoder) -> None:
    """A picture into the part that is being made. UserError where it shows that the pictures will not do."""
    if isinstance(one, Skipped):
        writer.skipped.append(one)
        making.check(writer.skipped)
    else:
        picture = one.picture
        making.expect(picture.size, picture.record.name)
        writer.add(picture.number, picture.size, one.moments, encoder.sums(one.moments), picture.facts)


def stop_if(asked: list[int], making: Making, here: Place) -> None:
    """Leave where a signal came; what the part that was begun has is made again."""
    if asked:
        if here.rank == 0:
            say(f"{signal.Signals(asked[0]).name}: {len(making.parts)} parts are done; the same command goes on")
        raise SystemExit(128 + asked[0])
