/* The heat-control problem of heat.py as a simulator that owns its main loop, coupled with dppo by dppo.h. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "dppo.h"

enum { SIZE = 32, STEPS = 60, SUBSTEPS = 8, HEATER = 4, NUM_SENSORS = 9, NUM_HEATERS = 4 };
static const double DIFFUSION = 0.2, LOSS = 0.004, POWER = 0.1, ERROR_WEIGHT = 2.0, COST = 0.1;
static const int SENSORS[3] = {5, 15, 26}, HEATERS[2] = {6, 22};

static MPI_Comm comm;
static int rank, size, first, last; /* this rank has the rows from first to last - 1 */
static struct {
    double air, step;
    double u[SIZE + 2][SIZE + 2]; /* row 1 is this rank's first; a halo of one cell on each side */
} plate;

static int64_t random_state;

static double uniform(void)
{
    random_state = 16807 * random_state % 2147483647;
    return (double)random_state / 2147483647.0;
}

static void begin_episode(int64_t seed)
{
    const double pi = acos(-1.0);
    int i, j, k, l;
    random_state = 1 + seed % 2147483646;
    for (k = 0; k < 8; ++k)
        uniform();
    memset(&plate, 0, sizeof plate);
    plate.air = -1.0 - uniform();
    for (k = 0; k < 3; ++k)
        for (l = 0; l < 3; ++l) {
            double amount = uniform() - 0.5;
            for (i = first; i < last; ++i)
                for (j = 0; j < SIZE; ++j)
                    plate.u[1 + i - first][1 + j] +=
                        amount * cos(pi * k * (i + 0.5) / SIZE) * cos(pi * l * (j + 0.5) / SIZE);
        }
}

/* Fills the halo: from the neighbours and, at the plate's edges, from the cells beside them. */
static void exchange(void)
{
    int rows = last - first, i;
    int up = rank > 0 ? rank - 1 : MPI_PROC_NULL, down = rank < size - 1 ? rank + 1 : MPI_PROC_NULL;
    for (i = 1; i <= rows; ++i) {
        plate.u[i][0] = plate.u[i][1];
        plate.u[i][SIZE + 1] = plate.u[i][SIZE];
    }
    memcpy(plate.u[0], plate.u[1], sizeof plate.u[0]);
    memcpy(plate.u[rows + 1], plate.u[rows], sizeof plate.u[0]);
    MPI_Sendrecv(plate.u[1], SIZE + 2, MPI_DOUBLE, up, 0, plate.u[rows + 1], SIZE + 2, MPI_DOUBLE, down, 0, comm,
                 MPI_STATUS_IGNORE);
    MPI_Sendrecv(plate.u[rows], SIZE + 2, MPI_DOUBLE, down, 1, plate.u[0], SIZE + 2, MPI_DOUBLE, up, 1, comm,
                 MPI_STATUS_IGNORE);
}

static void advance(const double *power)
{
    static double heat[SIZE][SIZE], next[SIZE][SIZE];
    int n, i, j, k, rows = last - first;
    memset(heat, 0, sizeof heat);
    for (n = 0; n < NUM_HEATERS; ++n)
        for (i = HEATERS[n / 2]; i < HEATERS[n / 2] + HEATER; ++i)
            for (j = HEATERS[n % 2]; j < HEATERS[n % 2] + HEATER; ++j)
                if (first <= i && i < last)
                    heat[i - first][j] = POWER * power[n];
    for (k = 0; k < SUBSTEPS; ++k) {
        exchange();
        for (i = 1; i <= rows; ++i)
            for (j = 1; j <= SIZE; ++j) {
                double u = plate.u[i][j];
                double around = plate.u[i - 1][j] + plate.u[i + 1][j] + plate.u[i][j - 1] + plate.u[i][j + 1] - 4.0 * u;
                next[i - 1][j - 1] = u + (DIFFUSION * around + LOSS * (plate.air - u) + heat[i - 1][j - 1]);
            }
        for (i = 1; i <= rows; ++i)
            memcpy(&plate.u[i][1], next[i - 1], sizeof next[0]);
    }
    plate.step += 1;
}

/* Gives the sensors' temperatures and returns the mean square of all. Each rank adds up its rows; the rows are added in
 * their order, so that the sum is the same for any number of ranks. */
static double measure(double *observation)
{
    double mine[NUM_SENSORS + SIZE] = {0}, all[NUM_SENSORS + SIZE], total = 0;
    int n, i, j;
    for (n = 0; n < NUM_SENSORS; ++n)
        if (first <= SENSORS[n / 3] && SENSORS[n / 3] < last)
            mine[n] = plate.u[1 + SENSORS[n / 3] - first][1 + SENSORS[n % 3]];
    for (i = first; i < last; ++i)
        for (j = 1; j <= SIZE; ++j)
            mine[NUM_SENSORS + i] += plate.u[1 + i - first][j] * plate.u[1 + i - first][j];
    MPI_Allreduce(mine, all, NUM_SENSORS + SIZE, MPI_DOUBLE, MPI_SUM, comm);
    memcpy(observation, all, NUM_SENSORS * sizeof(double));
    for (i = 0; i < SIZE; ++i)
        total += all[NUM_SENSORS + i];
    return total / (SIZE * SIZE);
}

/* Writes or reads this rank's part of the state. Returns whether that went well. */
static int transfer(const char *folder, int is_save)
{
    char path[4200];
    FILE *file;
    int is_done;
    snprintf(path, sizeof path, "%s/rank_%d.bin", folder, rank);
    file = fopen(path, is_save ? "wb" : "rb");
    if (file == NULL)
        return 0;
    is_done = (is_save ? fwrite(&plate, sizeof plate, 1, file) : fread(&plate, sizeof plate, 1, file)) == 1;
    return fclose(file) == 0 && is_done;
}

int main(int argc, char **argv)
{
    const double low[NUM_HEATERS] = {-1, -1, -1, -1}, high[NUM_HEATERS] = {1, 1, 1, 1};
    double observation[NUM_SENSORS], action[NUM_HEATERS], error, cost;
    int64_t seed = 0;
    int number, what, n;

    MPI_Init(&argc, &argv);
    dppo_begin(&comm, &number);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    first = rank * SIZE / size, last = (rank + 1) * SIZE / size;
    dppo_declare("heat", NUM_SENSORS, NULL, NULL, NUM_HEATERS, low, high, DPPO_CAN_SAVE);
    while ((what = dppo_wait_reset(&seed)) != DPPO_END) {
        if (what == DPPO_LOAD)
            dppo_answer(transfer(dppo_path(), 0));
        else {
            begin_episode(seed);
            measure(observation);
            dppo_send_state(observation, 0.0, DPPO_RUNNING);
        }
        for (;;) {
            what = dppo_receive_action(action);
            if (what == DPPO_SAVE || what == DPPO_LOAD)
                dppo_answer(transfer(dppo_path(), what == DPPO_SAVE));
            else if (what == DPPO_ACTION) {
                for (n = 0, cost = 0.0; n < NUM_HEATERS; ++n) {
                    action[n] = action[n] < -1.0 ? -1.0 : action[n] > 1.0 ? 1.0 : action[n];
                    cost += action[n] * action[n];
                }
                advance(action);
                error = measure(observation);
                dppo_send_state(observation, 1.0 - ERROR_WEIGHT * error - COST * cost / NUM_HEATERS,
                                plate.step >= STEPS ? DPPO_TRUNCATED : DPPO_RUNNING);
            } else
                break;
        }
    }
    dppo_end();
    return 0;
}
