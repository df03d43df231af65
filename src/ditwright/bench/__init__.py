"""ditwright beside diffusers and beside a plain DiT, timed in turns in one process: `ditwright bench`."""
