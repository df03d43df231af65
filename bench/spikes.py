"""Loss spikes that would have been told at several limits (`log.spike`), on the logs of runs that are over.

    python bench/spikes.py RUN ...

Best of runs with `--log.every 1`: every step's loss is then judged as it was in training. In a run that trained well
all of them are false alarms. Printed are the highest robust z-scores, and how many spikes each limit gives.
"""

import json
import sys
from pathlib import Path

from ditwright.train.spikes import Spikes

LIMITS = (3, 4, 5, 6, 8, 10)
SHOWN = 5

for run in sys.argv[1:]:
    lines = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    every = Spikes(1e-9)  # so low that it judges all
    scores = sorted(z for loss in losses if (z := every.judged(loss)) is not None)
    counts = {}
    for limit in LIMITS:
        spikes = Spikes(limit)
        counts[limit] = sum(spikes.see(step, loss) is not None for step, loss in enumerate(losses, 1))
    highest = ", ".join(f"{z:.1f}" for z in scores[-SHOWN:])
    told = ", ".join(f"{count} at {limit}" for limit, count in counts.items())
    print(f"{run}: {len(scores)} losses judged, highest z {highest}; spikes: {told}")
