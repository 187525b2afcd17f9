/* Simulators that do what their first argument says: most of it wrong. Each group counts the steps of an episode of four,
 * whose observation is [seed, step, sum of the actions so far], and whose reward is the number of ranks. */
#include "dppo.h"

static int is(const char *what, const char *wanted) { return strcmp(what, wanted) == 0; }

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "right";
    const double low[2] = {-1, -1}, high[2] = {1, 1};
    double observation[4] = {0}, action[2] = {0}, reward;
    int64_t seed = 0;
    MPI_Comm comm;
    int number, rank, size, next, step = 0, ones = 1, sum = 0;

    if (is(what, "leaves at once"))
        return 0;
    MPI_Init(&argc, &argv);
    if (is(what, "never begins"))
        for (;;)
            select(0, NULL, NULL, NULL, &(struct timeval){60, 0});
    if (is(what, "finalizes at once"))
        return MPI_Finalize();
    if (is(what, "declares first"))
        dppo_declare("it", 3, NULL, NULL, 2, low, high, DPPO_CANNOT_SAVE);
    dppo_begin(&comm, &number);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    if (is(what, "begins twice"))
        dppo_begin(&comm, &number);
    if (is(what, "dies undeclared") && number == 1)
        raise(9);
    if (is(what, "differs"))
        dppo_declare("it", 3 + number, NULL, NULL, 2, low, high, DPPO_CANNOT_SAVE);
    else if (is(what, "bounds"))
        dppo_declare("it", 3, NULL, NULL, 2, high, low, DPPO_CANNOT_SAVE);
    else if (is(what, "no actions"))
        dppo_declare("it", 3, NULL, NULL, 0, NULL, NULL, DPPO_CANNOT_SAVE);
    else if (!is(what, "declares nothing"))
        dppo_declare("it", 3, NULL, NULL, 2, low, high, DPPO_CANNOT_SAVE);
    while ((next = dppo_wait_reset(&seed)) != DPPO_END) {
        step = 0;
        observation[0] = (double)seed, observation[1] = observation[2] = 0;
        dppo_send_state(observation, 0.0, DPPO_RUNNING);
        if (is(what, "waits for a reset in an episode"))
            dppo_wait_reset(&seed);
        while (dppo_receive_action(action) == DPPO_ACTION) {
            MPI_Allreduce(&ones, &sum, 1, MPI_INT, MPI_SUM, comm);
            if (is(what, "slow"))
                select(0, NULL, NULL, NULL, &(struct timeval){0, 10000});
            if (is(what, "segfaults") && number == 0 && rank == size - 1)
                raise(SIGSEGV);
            if (is(what, "exits") && number == 0 && rank == size - 1)
                exit(3);
            if (is(what, "finalizes") && number == 0)
                return MPI_Finalize();
            if (is(what, "hangs") && number == 0 && rank == size - 1)
                for (;;)
                    select(0, NULL, NULL, NULL, &(struct timeval){60, 0});
            if (is(what, "wrong MPI") && number == 0)
                MPI_Send(&ones, 1, MPI_INT, 1000, 0, comm);
            observation[1] = ++step;
            observation[2] += action[0] + action[1];
            if (is(what, "no number"))
                observation[2] = (observation[1] - step) / 0.0;
            reward = sum;
            if (!is(what, "sends nothing"))
                dppo_send_state(observation, reward, is(what, "status") ? 7 : step == 4 ? DPPO_TERMINATED : DPPO_RUNNING);
            if (is(what, "sends twice"))
                dppo_send_state(observation, reward, DPPO_RUNNING);
        }
    }
    dppo_end();
    return 0;
}
