"""Everything on disk. Uses NumPy, h5py, safetensors and the standard library; no MPI, and no pickle.

- a run: `metrics` (lines, summary, TensorBoard), `checkpoint` (with `tensors`, its form, and `contents`, what must hold
  for its values); `files` makes all of it appear whole or not at all
- many runs, read: `runs` (how each stands), `curves` (their picture)
- trajectories, written: `segments` (one file), `trajectory` (a worker's writer), `dumps` (what a checkpoint waits for),
  `spaces` (spaces as JSON)
- HDF5 of others: `hdf5` opens it, and refuses what leads out of it
- trajectories, read: `dataset` (episodes; `dppo.open_trajectories`), `catalogue` (which steps are where)
- looked after: `validation` (between files), `segment_rules` (within one), `salvage` (`recover`), `virtual` (`index`),
  `plots`
- for others: `export`, with `export_minari`, `export_d4rl`, `export_tables`, and `exported`, what they share
"""
