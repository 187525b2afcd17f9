/* dppo.h for Fortran: compile this file with the simulator, beside dppo.f90.
 *
 * Communicators are Fortran's handles here (MPI_Comm_c2f), as in `use mpi` and mpif.h. */
#include "dppo.h"

void dppo_f_begin(MPI_Fint *comm, int *number)
{
    MPI_Comm made;
    dppo_begin(&made, number);
    *comm = MPI_Comm_c2f(made);
}

void dppo_f_declare(const char *name, int num_observations, const double *observation_low,
                    const double *observation_high, int num_actions, const double *action_low,
                    const double *action_high, int can_save)
{
    dppo_declare(name, num_observations, observation_low, observation_high, num_actions, action_low, action_high,
                 can_save);
}

int dppo_f_wait_reset(int64_t *seed) { return dppo_wait_reset(seed); }

void dppo_f_send_state(const double *observation, double reward, int status)
{
    dppo_send_state(observation, reward, status);
}

int dppo_f_receive_action(double *action) { return dppo_receive_action(action); }

/* Copies the path without its end, and returns its length. */
int dppo_f_path(char *path, int size)
{
    int length = (int)strlen(dppo_path());
    if (length > size)
        dppo_fail_("the path of a state is longer than the text that dppo_path was given");
    memcpy(path, dppo_path(), (size_t)length);
    return length;
}

void dppo_f_answer(int is_done) { dppo_answer(is_done); }

void dppo_f_end(void) { dppo_end(); }

/* Named constants of MPI have no portable form in C bindings: these start MPI where no Fortran module of MPI is there. */
void dppo_f_init(void) { MPI_Init(NULL, NULL); }
