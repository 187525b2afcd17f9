"""What ranks say to each other. Besides dppo/run, only this folder calls MPI."""
