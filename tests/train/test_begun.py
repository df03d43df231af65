"""A folder in which nothing was trained is no run to go on with."""

from __future__ import annotations

import pytest
import torch

from ditwright.config import from_dict, load_yaml
from ditwright.errors import UserError
from ditwright.experiment import TrainConfig
from ditwright.train.folder import settle
from ditwright.train.parallel import World

ALONE = World(torch.device("cpu"))


@pytest.mark.parametrize("noted", ["", '{"step": 1, "loss": 0.5}\n'], ids=["no step", "a step"])
def test_after_a_first_step_that_failed_the_corrected_command_runs(noted, tiny, tmp_path):
    settle(tiny(""), tmp_path, ALONE, None)
    (tmp_path / "metrics.jsonl").write_text(noted)
    corrected = tiny("--data.batch_size 2")
    if noted:
        with pytest.raises(UserError, match=r"holds another run: data\.batch_size"):
            settle(corrected, tmp_path, ALONE, None)
    else:
        settle(corrected, tmp_path, ALONE, None)
        assert from_dict(TrainConfig, load_yaml(tmp_path / "config.yaml")).data.batch_size == 2
