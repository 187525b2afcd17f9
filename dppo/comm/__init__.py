"""The messages between ranks. Only this folder and dppo/run call MPI."""
