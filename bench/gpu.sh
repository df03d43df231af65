#!/usr/bin/env bash
# Check and time ditwright on this machine's GPU beside a plain DiT, and diffusers' where it is installed.
#
#     bench/gpu.sh [--output DIR]       all of it, in under 9 minutes; writes DIR/gpu.json and DIR/gpu.md
#     bench/gpu.sh --cpu-smoke          the same path with tiny networks on the CPU, in a minute; its numbers mean nothing
#
# Needs torch, numpy, einops and safetensors, and no network. PYTHON names the interpreter; otherwise it is that of
# .venv, where there is one. Both files are written after every contest: what is cut short has not been for nothing.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -n "${PYTHON:-}" ]] || { [[ -x "$here/../.venv/bin/python" ]] && PYTHON="$here/../.venv/bin/python"; } || PYTHON=python3
# speed.py begins nothing after 7 minutes; this ends what hangs, where coreutils are there.
bound=(timeout --foreground --signal=INT --kill-after=10 525)
"${bound[@]}" true 2>/dev/null || bound=(env)
PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" exec "${bound[@]}" "$PYTHON" "$here/speed.py" "$@"
