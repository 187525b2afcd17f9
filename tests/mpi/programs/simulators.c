/* Simulators that do what their first argument says: most of it wrong. Each group counts the steps of an episode of four,
 * whose observation is [seed, step, sum of the actions so far], and whose reward is the number of ranks. */
#include "dppo.h"

static int is(const char *what, const char *wanted) { return strcmp(what, wanted) == 0; }

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "right";
    const double low[2] = {-1, -1}, high[2] = {1, 1}, none[2] = {0.0 / 0.0, 0.0 / 0.0};
    char name[5000] = "it";
    double observation[4] = {0}, action[2] = {0}, reward;
    int64_t seed = 0;
    MPI_Comm comm;
    int number, rank, size, next, step = 0, ones = 1, sum = 0, can_save = strstr(what, "save") || strstr(what, "load");

    if (is(what, "leaves at once"))
        return 0;
    if (is(what, "begins before MPI"))
        dppo_begin(&comm, &number);
    MPI_Init(&argc, &argv);
    if (is(what, "never begins"))
        for (;;)
            pause();
    if (is(what, "finalizes at once"))
        return MPI_Finalize();
    if (is(what, "declares first"))
        dppo_declare("it", 3, NULL, NULL, 2, low, high, DPPO_CANNOT_SAVE);
    dppo_begin(is(what, "no communicator") ? NULL : &comm, &number);
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
    else if (is(what, "bounds of NaN"))
        dppo_declare("it", 3, NULL, NULL, 2, none, high, DPPO_CANNOT_SAVE);
    else if (is(what, "no actions"))
        dppo_declare("it", 3, NULL, NULL, 0, NULL, NULL, DPPO_CANNOT_SAVE);
    else if (is(what, "fewer than no observations"))
        dppo_declare("it", -3, NULL, NULL, 2, low, high, DPPO_CANNOT_SAVE);
    else if (is(what, "no name"))
        dppo_declare(NULL, 3, NULL, NULL, 2, low, high, DPPO_CANNOT_SAVE);
    else if (is(what, "long name"))
        dppo_declare((char *)memset(name, 'x', sizeof name - 1), 3, NULL, NULL, 2, low, high, DPPO_CANNOT_SAVE);
    else if (!is(what, "declares nothing"))
        dppo_declare(name, 3, NULL, NULL, 2, low, high, can_save ? DPPO_CAN_SAVE : DPPO_CANNOT_SAVE);
    if (is(what, "declares twice"))
        dppo_declare("it", 3, NULL, NULL, 2, low, high, DPPO_CANNOT_SAVE);
    if (is(what, "sends before a reset"))
        dppo_send_state(observation, 0.0, DPPO_RUNNING);
    if (is(what, "ends at once"))
        dppo_end();
    while ((next = dppo_wait_reset(is(what, "no seed") ? NULL : &seed)) != DPPO_END) {
        if (next == DPPO_LOAD) {
            dppo_answer(!is(what, "fails to load"));
            continue;
        }
        step = 0;
        observation[0] = (double)seed, observation[1] = observation[2] = 0;
        dppo_send_state(observation, 0.0, is(what, "begins at an end") ? DPPO_TERMINATED : DPPO_RUNNING);
        if (is(what, "answers unasked"))
            dppo_answer(1);
        if (is(what, "waits for a reset in an episode"))
            dppo_wait_reset(&seed);
        while ((next = dppo_receive_action(is(what, "no action") ? NULL : action)) == DPPO_ACTION || next == DPPO_SAVE) {
            if (next == DPPO_SAVE) {
                if (is(what, "fails to load") && rank == 0) {
                    snprintf(name, sizeof name, "%s/it", dppo_path());
                    fclose(fopen(name, "w"));
                }
                if (!is(what, "never answers a save"))
                    dppo_answer(!is(what, "fails to save"));
                continue;
            }
            MPI_Allreduce(&ones, &sum, 1, MPI_INT, MPI_SUM, comm);
            if (is(what, "slow"))
                select(0, NULL, NULL, NULL, &(struct timeval){0, 10000});
            if (is(what, "segfaults") && number == 0 && rank == size - 1)
                raise(SIGSEGV);
            if (is(what, "exits") && number == 0 && rank == size - 1)
                exit(3);
            if (is(what, "exits with 0") && number == 0 && rank == size - 1)
                exit(0);
            if (is(what, "finalizes") && number == 0)
                return MPI_Finalize();
            if (is(what, "ends in an episode") && number == 0)
                dppo_end();
            if (is(what, "aborts") && number == 0)
                MPI_Abort(MPI_COMM_WORLD, 5);
            if (is(what, "is killed") && number == 0 && rank == size - 1)
                raise(SIGKILL);
            if (is(what, "hangs") && number == 0 && rank == size - 1)
                for (;;)
                    pause();
            if (is(what, "wrong MPI") && number == 0)
                MPI_Send(&ones, 1, MPI_INT, 1000, 0, comm);
            observation[1] = ++step;
            observation[2] += action[0] + action[1];
            if (is(what, "no number"))
                observation[2] = (observation[1] - step) / 0.0;
            reward = is(what, "no number as reward") ? none[0] : sum;
            if (!is(what, "sends nothing"))
                dppo_send_state(is(what, "no observation") ? NULL : observation, reward, is(what, "status") ? 7 : step == 4 ? DPPO_TERMINATED : DPPO_RUNNING);
            if (is(what, "sends twice"))
                dppo_send_state(observation, reward, DPPO_RUNNING);
        }
    }
    while (is(what, "never leaves"))
        pause();
    dppo_end();
    return 0;
}
