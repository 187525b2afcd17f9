/* The plate of examples/heat for groups.py: a solver whose step takes as long as dppo says, coupled or by itself.
 *
 * Action: how many steps to make without dppo in between, and what each of them does: how often it advances the plate,
 * how many operations it computes, and how many microseconds it sleeps. Observation: the seconds that this took. */
#define main heat_main
#include "../examples/heat/heat.c"
#undef main
#include <time.h>

static void step(const double *action)
{
    const double power[NUM_HEATERS] = {0};
    double observation[NUM_SENSORS];
    volatile double x = 1;
    struct timespec pause;
    long k;
    for (k = 0; k < (long)action[1]; ++k)
        advance(power);
    for (k = 0; k < (long)action[2]; ++k)
        x = x * 1.0;
    pause.tv_sec = 0, pause.tv_nsec = 1000 * (long)action[3];
    if (pause.tv_nsec > 0)
        nanosleep(&pause, NULL);
    if (action[1] > 0 || action[2] > 0 || action[3] > 0)
        measure(observation);
}

int main(int argc, char **argv)
{
    const double low[NUM_HEATERS] = {0}, high[NUM_HEATERS] = {1e9, 1e9, 1e9, 1e9};
    double observation[NUM_SENSORS] = {0}, action[NUM_HEATERS], since;
    int64_t seed = 0;
    int number;
    long n;

    MPI_Init(&argc, &argv);
    dppo_begin(&comm, &number);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    first = rank * SIZE / size, last = (rank + 1) * SIZE / size;
    dppo_declare("coupled", NUM_SENSORS, NULL, NULL, NUM_HEATERS, low, high, DPPO_CANNOT_SAVE);
    while (dppo_wait_reset(&seed) == DPPO_RESET) {
        begin_episode(seed);
        dppo_send_state(observation, 0.0, DPPO_RUNNING);
        while (dppo_receive_action(action) == DPPO_ACTION) {
            since = MPI_Wtime();
            for (n = 0; n < (long)action[0]; ++n)
                step(action);
            observation[0] = MPI_Wtime() - since;
            dppo_send_state(observation, 0.0, DPPO_RUNNING);
        }
    }
    dppo_end();
    return 0;
}
