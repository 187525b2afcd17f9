/* A solver that is controlled by commands, as many are: it is started beside a program that has rank 0 of the job, which
 * sends integers over an intercommunicator. Each rank has one cell of a ring, which follows the control and its left
 * neighbour.
 *
 * Written for a job of its own (main), where the world is 1 + the solver's ranks. What dppo needs is that the world is an
 * argument, that main's body is a function, and one more command: WAIT hands the ranks back until the next call. */
#include <mpi.h>
#include <stdlib.h>

enum { WAIT = 0, RESET = 1, CONTROL = 2, EVOLVE = 3, OBSERVE = 4, END = 5, TAG = 42 };

struct solver {
    MPI_Comm own, control; /* the solver's ranks, and the bridge to rank 0 of the world */
    int rank, size;
    double cell, target;
};

struct solver *solver_open(MPI_Fint world_handle, int expected_size)
{
    MPI_Comm world = MPI_Comm_f2c(world_handle);
    struct solver *s = (struct solver *)calloc(1, sizeof *s);
    int rank, size;
    MPI_Comm_rank(world, &rank);
    MPI_Comm_size(world, &size);
    if (size != expected_size)
        MPI_Abort(world, 3);
    MPI_Comm_split(world, 1, rank, &s->own);
    MPI_Intercomm_create(s->own, 0, world, 0, TAG, &s->control);
    MPI_Comm_rank(s->own, &s->rank);
    MPI_Comm_size(s->own, &s->size);
    return s;
}

/* Obeys until WAIT or END, and returns which. */
int solver_obey(struct solver *s)
{
    int command, n;
    double number, left, sum;
    for (;;) {
        if (s->rank == 0)
            MPI_Recv(&command, 1, MPI_INT, 0, TAG, s->control, MPI_STATUS_IGNORE);
        MPI_Bcast(&command, 1, MPI_INT, 0, s->own);
        if (command == RESET || command == CONTROL || command == EVOLVE) {
            if (s->rank == 0)
                MPI_Recv(&number, 1, MPI_DOUBLE, 0, TAG, s->control, MPI_STATUS_IGNORE);
            MPI_Bcast(&number, 1, MPI_DOUBLE, 0, s->own);
        }
        switch (command) {
        case RESET:
            s->cell = (double)((long)number % 10 + s->rank) / 8, s->target = 0;
            break;
        case CONTROL:
            s->target = number;
            break;
        case EVOLVE:
            for (n = 0; n < (int)number; ++n) {
                MPI_Sendrecv(&s->cell, 1, MPI_DOUBLE, (s->rank + 1) % s->size, TAG, &left, 1, MPI_DOUBLE,
                             (s->rank + s->size - 1) % s->size, TAG, s->own, MPI_STATUS_IGNORE);
                s->cell += 0.25 * (s->target - s->cell) + 0.125 * (left - s->cell);
            }
            break;
        case OBSERVE:
            MPI_Reduce(&s->cell, &sum, 1, MPI_DOUBLE, MPI_SUM, 0, s->own);
            if (s->rank == 0) {
                double seen[2] = {sum, (double)s->size};
                MPI_Send(seen, 2, MPI_DOUBLE, 0, TAG, s->control);
            }
            break;
        case END:
            MPI_Comm_disconnect(&s->control);
            MPI_Comm_free(&s->own);
            free(s);
            return END;
        default:
            return WAIT;
        }
    }
}

int main(int argc, char **argv)
{
    struct solver *s;
    int size;
    MPI_Init(&argc, &argv);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    s = solver_open(MPI_Comm_c2f(MPI_COMM_WORLD), size);
    while (solver_obey(s) != END)
        ;
    return MPI_Finalize();
}
