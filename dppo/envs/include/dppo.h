/* dppo.h: couples a simulator that owns its main loop with dppo, in C99 and C++.
 *
 *   mpirun -n 1+W python -m dppo.run --env dppo.envs:Solver --env-ranks G --num-envs 1 ... : -n W*G ./simulator
 *
 * G ranks of the simulator are a group, which is one environment. Every rank of a group makes the same calls in the same
 * order; what rank 0 of the group gives to dppo_declare and dppo_send_state counts. A whole simulator:
 *
 *     MPI_Init(&argc, &argv);
 *     dppo_begin(&comm, &number);                      use comm in place of MPI_COMM_WORLD
 *     dppo_declare("channel", 9, NULL, NULL, 4, low, high, DPPO_CANNOT_SAVE);
 *     while (dppo_wait_reset(&seed) != DPPO_END) {
 *         ... set the initial state, by the seed ...
 *         dppo_send_state(observation, 0.0, DPPO_RUNNING);
 *         while (dppo_receive_action(action) == DPPO_ACTION) {
 *             ... advance ...
 *             dppo_send_state(observation, reward, DPPO_RUNNING or DPPO_TERMINATED or DPPO_TRUNCATED);
 *         }
 *     }
 *     dppo_end();                                      in place of MPI_Finalize
 *
 * A simulator that declares DPPO_CAN_SAVE also gets DPPO_SAVE from dppo_receive_action, and DPPO_LOAD from both calls that
 * wait. It writes its state to the folder dppo_path(), or reads it there, and tells by dppo_answer(1), or (0), whether
 * that went well. After DPPO_LOAD an episode is under way: next comes dppo_receive_action.
 *
 * No call returns an error. What a simulator cannot repair ends it: where the job survives deaths (mpirun --with-ft ulfm)
 * this group and its worker end, and the others continue; else the job ends.
 *
 * Include this file in one source file only: it holds what it knows in static variables.
 */
#ifndef DPPO_H
#define DPPO_H

#include <mpi.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <unistd.h>

enum { DPPO_END = 0, DPPO_RESET = 1, DPPO_ACTION = 2, DPPO_SAVE = 3, DPPO_LOAD = 4 };
enum { DPPO_RUNNING = 0, DPPO_TERMINATED = 1, DPPO_TRUNCATED = 2 };
enum { DPPO_CANNOT_SAVE = 0, DPPO_CAN_SAVE = 1 };

/* --- What the two programs say to each other; run/solvers.py and run/solver_link.py have the same numbers. --- */

enum { DPPO_PROTOCOL_ = 2, DPPO_TAG_ = 7700, DPPO_TAG_PATH_ = 7701, DPPO_HEAD_ = 2, DPPO_WELCOME_ = 5 };
enum { DPPO_LONGEST_PATH_ = 4096 };
enum { DPPO_HOST_ = 64, DPPO_SAID_ = 2 + DPPO_HOST_ / (int)sizeof(int) }; /* a rank's version, process and node */

static struct {
    MPI_Comm group, inner, head; /* the simulator's, this file's copy of it, and the bridge to the worker */
    int number, rank, num_observations, num_actions, can_save;
    int pending, expects_state, is_first, expects_answer, has_ended, is_deadly;
    double *message; /* a request and its number, each an int64 in the place of a double, then the action */
    double *state;   /* status and reward, then the observation */
    char path[DPPO_LONGEST_PATH_];
} dppo_ = {MPI_COMM_NULL, MPI_COMM_NULL, MPI_COMM_NULL, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0, NULL, NULL, ""};

/* Ends this process so that all others notice: only a signal is noticed where the job survives deaths. */
static inline void dppo_die_(void)
{
    fflush(NULL);
    dppo_.has_ended = 1;
    if (dppo_.is_deadly)
        raise(9);
    MPI_Abort(MPI_COMM_WORLD, 1);
    exit(1);
}

static inline void dppo_fail_(const char *what)
{
    if (dppo_.number < 0)
        fprintf(stderr, "dppo: a simulator that called dppo.h: %s\n", what);
    else
        fprintf(stderr, "dppo: simulator %d, rank %d of its group: %s\n", dppo_.number, dppo_.rank, what);
    dppo_die_();
}

static inline void dppo_need_(const void *given, const char *call)
{
    char text[100];
    snprintf(text, sizeof text, "%s was given NULL", call);
    if (given == NULL)
        dppo_fail_(text);
}

/* The error handler of all communicators that dppo_begin makes, and of those that a simulator makes of them. */
static inline void dppo_on_error_(MPI_Comm *comm, int *code, ...)
{
    char text[MPI_MAX_ERROR_STRING];
    int length = 0, kind = 0;
    (void)comm;
    MPI_Error_class(*code, &kind);
#ifdef MPI_ERR_PROC_FAILED
    if (dppo_.is_deadly && (kind == MPI_ERR_PROC_FAILED || kind == MPI_ERR_PROC_FAILED_PENDING))
        dppo_die_(); /* the worker says which group has ended */
#endif
    MPI_Error_string(*code, text, &length);
    dppo_fail_(text);
}

static inline int dppo_on_finalize_(MPI_Comm comm, int key, void *value, void *extra)
{
    (void)comm, (void)key, (void)value, (void)extra;
    if (!dppo_.has_ended)
        dppo_fail_("MPI_Finalize before DPPO_END: call dppo_end in its place, once dppo_wait_reset returns DPPO_END");
    return MPI_SUCCESS;
}

static inline void dppo_on_exit_(void)
{
    if (!dppo_.has_ended)
        dppo_fail_("it exits before DPPO_END: stay in dppo_wait_reset until it returns DPPO_END");
}

/* A launcher passes on to all ranks what asks dppo to save and leave. The simulator continues until dppo lets it go. */
static inline void dppo_outlive_requests_(void)
{
    const int requests[3] = {SIGUSR1, SIGTERM, SIGINT};
    int i;
    for (i = 0; i < 3; ++i) {
        void (*before)(int) = signal(requests[i], SIG_IGN);
        if (before != SIG_DFL && before != SIG_ERR)
            signal(requests[i], before);
    }
}

static inline void dppo_sleep_(long microseconds)
{
    struct timeval pause;
    pause.tv_sec = 0;
    pause.tv_usec = microseconds;
    select(0, NULL, NULL, NULL, &pause);
}

/* Waits, soon mostly asleep: dppo learns meanwhile, perhaps on the same cores. */
static inline void dppo_wait_(MPI_Request *request)
{
    int done = 0;
    double since = MPI_Wtime();
    for (;;) {
        double waited;
        MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (done)
            return;
        waited = MPI_Wtime() - since;
        if (waited > 2e-4)
            dppo_sleep_(waited > 0.032 ? 1000 : (long)(waited * 1e6 / 32));
    }
}

/* Sends the bytes of rank 0 to all ranks of the group, along a binomial tree. */
static inline void dppo_broadcast_(void *data, int bytes)
{
    MPI_Request request;
    int size, step = 1, rank = dppo_.rank;
    MPI_Comm_size(dppo_.inner, &size);
    while (step < size && !(rank & step))
        step *= 2;
    if (rank != 0) {
        MPI_Irecv(data, bytes, MPI_BYTE, rank - step, DPPO_TAG_, dppo_.inner, &request);
        dppo_wait_(&request);
    }
    for (step /= 2; step > 0; step /= 2)
        if (rank + step < size) {
            MPI_Isend(data, bytes, MPI_BYTE, rank + step, DPPO_TAG_, dppo_.inner, &request);
            dppo_wait_(&request);
        }
}

static inline int64_t dppo_word_(const double *at)
{
    int64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void dppo_put_word_(double *at, int64_t value) { memcpy(at, &value, sizeof value); }

static inline void dppo_send_(const void *data, size_t bytes)
{
    MPI_Request request;
    MPI_Isend(data, (int)bytes, MPI_BYTE, 0, DPPO_TAG_, dppo_.head, &request);
    dppo_wait_(&request);
}

/* Returns what dppo wants next. It stays pending until the call that acts on it. */
static inline int dppo_next_(void)
{
    MPI_Request request;
    int64_t length;
    if (dppo_.expects_state)
        dppo_fail_("dppo waits for a state: call dppo_send_state once after each DPPO_RESET and each DPPO_ACTION");
    if (dppo_.expects_answer)
        dppo_fail_("dppo waits for an answer: call dppo_answer after each DPPO_SAVE and each DPPO_LOAD");
    if (dppo_.message == NULL)
        dppo_fail_("dppo_declare must come first");
    if (dppo_.pending >= 0)
        return dppo_.pending;
    if (dppo_.rank == 0) {
        MPI_Irecv(dppo_.message, (DPPO_HEAD_ + dppo_.num_actions) * 8, MPI_BYTE, 0, DPPO_TAG_, dppo_.head, &request);
        dppo_wait_(&request);
    }
    dppo_broadcast_(dppo_.message, (DPPO_HEAD_ + dppo_.num_actions) * 8);
    dppo_.pending = (int)dppo_word_(dppo_.message);
    if (dppo_.pending == DPPO_SAVE || dppo_.pending == DPPO_LOAD) {
        length = dppo_word_(dppo_.message + 1);
        if (length >= DPPO_LONGEST_PATH_)
            dppo_fail_("the path of a state is too long: choose a shorter --run-dir");
        if (dppo_.rank == 0) {
            MPI_Irecv(dppo_.path, (int)length, MPI_BYTE, 0, DPPO_TAG_PATH_, dppo_.head, &request);
            dppo_wait_(&request);
        }
        dppo_broadcast_(dppo_.path, (int)length);
        dppo_.path[length] = '\0';
    }
    return dppo_.pending;
}

/* Meets dppo: the first call after MPI_Init. Gives the communicator of this rank's group, for the simulator alone, and
 * the number of the group, from 0. */
static inline void dppo_begin(MPI_Comm *comm, int *number)
{
    int said[DPPO_SAID_] = {-DPPO_PROTOCOL_}, size, i, first = -1, members = 0, given = 0, key, is_on = 0;
    int *all, *solvers;
    char host[MPI_MAX_PROCESSOR_NAME] = "";
    int64_t welcome[DPPO_WELCOME_];
    const char *ulfm = getenv("OMPI_MCA_mpi_ft_enable");
    MPI_Request request;
    MPI_Group world, mine;
    MPI_Errhandler handler;

    MPI_Initialized(&is_on);
    if (!is_on) {
        fprintf(stderr, "dppo: dppo_begin comes after MPI_Init\n");
        exit(1);
    }
    dppo_need_(comm, "dppo_begin");
    dppo_need_(number, "dppo_begin");
    if (dppo_.group != MPI_COMM_NULL)
        dppo_fail_("dppo_begin was called twice");
    dppo_.is_deadly = ulfm != NULL && (strcmp(ulfm, "1") == 0 || strcmp(ulfm, "true") == 0);
    MPI_Comm_create_errhandler(dppo_on_error_, &handler);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, handler);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    all = (int *)malloc((DPPO_SAID_ + 1) * (size_t)size * sizeof(int));
    if (all == NULL)
        dppo_fail_("no memory");
    solvers = all + (size_t)DPPO_SAID_ * (size_t)size;
    said[1] = (int)getpid();
    MPI_Get_processor_name(host, &i);
    host[i < DPPO_HOST_ ? i : DPPO_HOST_ - 1] = '\0';
    memcpy(said + 2, host, strlen(host) + 1);
    dppo_outlive_requests_();
    atexit(dppo_on_exit_);
    MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, dppo_on_finalize_, &key, NULL);
    MPI_Comm_set_attr(MPI_COMM_SELF, key, NULL);

    MPI_Iallgather(said, DPPO_SAID_, MPI_INT, all, DPPO_SAID_, MPI_INT, MPI_COMM_WORLD, &request);
    dppo_wait_(&request);
    for (i = size - 1; i >= 0; --i)
        if (all[DPPO_SAID_ * i] > 0)
            first = i;
    for (i = 0; i < size; ++i)
        if (all[DPPO_SAID_ * i] < 0)
            solvers[members++] = i;
    if (first < 0) {
        int rank;
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        dppo_.has_ended = 1;
        if (rank == 0)
            fprintf(stderr, "dppo: a simulator was started without dppo: mpirun -n 1+W python -m dppo.run --env"
                            " dppo.envs:Solver --env-ranks G --num-envs 1 : -n W*G ./simulator\n");
        MPI_Finalize();
        exit(2);
    }
    if (all[DPPO_SAID_ * first] != DPPO_PROTOCOL_) { /* dppo sees it, too, and ends the job */
        for (i = 0; i < 100; ++i)
            dppo_sleep_(100000);
        dppo_fail_("it was compiled with the dppo.h of another version: compile it anew with"
                   " -I$(python -m dppo.job --include)");
    }

    /* [accepted, ranks of a group, number of the group, its worker's rank, first of its ranks among the simulators] */
    MPI_Irecv(welcome, DPPO_WELCOME_, MPI_INT64_T, first, DPPO_TAG_, MPI_COMM_WORLD, &request);
    dppo_wait_(&request);
    if (!welcome[0]) { /* dppo says why */
        dppo_.has_ended = 1;
        if (dppo_.is_deadly)
            _Exit(0);
        MPI_Finalize();
        exit(0);
    }
    given = (int)welcome[1];
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_incl(world, given, solvers + welcome[4], &mine);
    MPI_Comm_create_group(MPI_COMM_WORLD, mine, DPPO_TAG_, &dppo_.group);
    MPI_Comm_set_errhandler(dppo_.group, handler);
    MPI_Comm_dup(dppo_.group, &dppo_.inner);
    MPI_Comm_set_errhandler(dppo_.inner, handler);
    MPI_Intercomm_create(dppo_.inner, 0, MPI_COMM_WORLD, (int)welcome[3], DPPO_TAG_, &dppo_.head);
    MPI_Comm_set_errhandler(dppo_.head, handler);
    MPI_Comm_rank(dppo_.group, &dppo_.rank);
    MPI_Group_free(&mine);
    MPI_Group_free(&world);
    free(all);
    *number = dppo_.number = (int)welcome[2];
    *comm = dppo_.group;
}

/* Tells dppo what the environment is: a name, and sizes and bounds of observation and action. NULL: without bounds.
 * can_save: DPPO_CAN_SAVE or DPPO_CANNOT_SAVE. */
static inline void dppo_declare(const char *name, int num_observations, const double *observation_low,
                         const double *observation_high, int num_actions, const double *action_low,
                         const double *action_high, int can_save)
{
    const double *given[4];
    size_t count[4], at = 0, i, bytes, length = name == NULL ? 0 : strlen(name);
    int64_t head[4];
    char *text;
    int part;

    if (dppo_.group == MPI_COMM_NULL)
        dppo_fail_("dppo_begin must come before dppo_declare");
    if (dppo_.message != NULL)
        dppo_fail_("dppo_declare was called twice");
    if (num_observations < 1 || num_actions < 1 || num_observations > 100000000 || num_actions > 10000000)
        dppo_fail_("dppo_declare needs at least one observation and one action");
    if (length < 1 || length > 1000)
        dppo_fail_("the name in dppo_declare needs 1 to 1000 characters");
    dppo_.num_observations = num_observations, dppo_.num_actions = num_actions, dppo_.can_save = can_save != 0;
    dppo_.message = (double *)calloc((size_t)(DPPO_HEAD_ + num_actions), sizeof(double));
    dppo_.state = (double *)calloc((size_t)(DPPO_HEAD_ + num_observations), sizeof(double));
    bytes = sizeof head + 16 * ((size_t)num_observations + (size_t)num_actions) + length;
    text = (char *)malloc(bytes);
    if (dppo_.message == NULL || dppo_.state == NULL || text == NULL)
        dppo_fail_("no memory");
    given[0] = observation_low, given[1] = observation_high, given[2] = action_low, given[3] = action_high;
    count[0] = count[1] = (size_t)num_observations, count[2] = count[3] = (size_t)num_actions;
    head[0] = num_observations, head[1] = num_actions, head[2] = dppo_.can_save, head[3] = (int64_t)length;
    memcpy(text, head, sizeof head);
    at = sizeof head;
    for (part = 0; part < 4; ++part)
        for (i = 0; i < count[part]; ++i, at += sizeof(double)) {
            double bound = part % 2 ? 1e308 * 10 : -1e308 * 10; /* infinite */
            if (given[part] != NULL)
                bound = given[part][i];
            memcpy(text + at, &bound, sizeof bound);
        }
    memcpy(text + at, name, length);
    if (dppo_.rank == 0)
        dppo_send_(text, bytes);
    free(text);
}

/* Waits for the next episode. Returns DPPO_RESET with its seed, from 0 to 2^31 - 1, DPPO_LOAD, or DPPO_END. */
static inline int dppo_wait_reset(int64_t *seed)
{
    int next;
    dppo_need_(seed, "dppo_wait_reset");
    next = dppo_next_();
    if (next == DPPO_ACTION || next == DPPO_SAVE)
        dppo_fail_("an episode is under way: call dppo_receive_action");
    dppo_.pending = next == DPPO_END ? DPPO_END : -1;
    dppo_.expects_state = dppo_.is_first = next == DPPO_RESET;
    dppo_.expects_answer = next == DPPO_LOAD;
    if (next == DPPO_RESET)
        *seed = dppo_word_(dppo_.message + 1);
    return next;
}

/* Sends the state after a reset or an action. */
static inline void dppo_send_state(const double *observation, double reward, int status)
{
    if (!dppo_.expects_state)
        dppo_fail_("dppo waits for no state: call dppo_send_state once after each DPPO_RESET and each DPPO_ACTION");
    if (dppo_.is_first && status != DPPO_RUNNING)
        dppo_fail_("the first state of an episode must be DPPO_RUNNING: an episode has one step at least");
    dppo_.expects_state = dppo_.is_first = 0;
    if (dppo_.rank != 0)
        return;
    dppo_need_(observation, "dppo_send_state");
    dppo_put_word_(dppo_.state, status);
    dppo_.state[1] = reward;
    memcpy(dppo_.state + DPPO_HEAD_, observation, (size_t)dppo_.num_observations * sizeof(double));
    dppo_send_(dppo_.state, (size_t)(DPPO_HEAD_ + dppo_.num_observations) * sizeof(double));
}

/* Waits for the next action. Returns DPPO_ACTION with the action, DPPO_SAVE, DPPO_LOAD, or DPPO_RESET or DPPO_END: then
 * the episode is over, and the next call is dppo_wait_reset. */
static inline int dppo_receive_action(double *action)
{
    int next;
    dppo_need_(action, "dppo_receive_action");
    next = dppo_next_();
    if (next == DPPO_RESET || next == DPPO_END)
        return next; /* still pending, for dppo_wait_reset */
    dppo_.pending = -1;
    dppo_.expects_state = next == DPPO_ACTION;
    dppo_.expects_answer = next != DPPO_ACTION;
    if (next == DPPO_ACTION)
        memcpy(action, dppo_.message + DPPO_HEAD_, (size_t)dppo_.num_actions * sizeof(double));
    return next;
}

/* The folder of a state, after DPPO_SAVE or DPPO_LOAD. It is there already. */
static inline const char *dppo_path(void) { return dppo_.path; }

/* Tells whether this rank's part of the state was written or read. All ranks must say 1. */
static inline void dppo_answer(int is_done)
{
    int mine = is_done != 0, all = 0;
    int64_t word;
    MPI_Request request;
    if (!dppo_.expects_answer)
        dppo_fail_("dppo waits for no answer: call dppo_answer once after each DPPO_SAVE and each DPPO_LOAD");
    dppo_.expects_answer = 0;
    MPI_Iallreduce(&mine, &all, 1, MPI_INT, MPI_MIN, dppo_.inner, &request);
    dppo_wait_(&request);
    word = all;
    if (dppo_.rank == 0)
        dppo_send_(&word, sizeof word);
}

/* The last call, in place of MPI_Finalize, after DPPO_END. Where the job survives deaths it ends the process, because
 * MPI_Finalize may wait for ranks that are dead. */
static inline void dppo_end(void)
{
    if (dppo_.pending != DPPO_END)
        dppo_fail_("dppo_end before DPPO_END: call it once dppo_wait_reset returns DPPO_END");
    fflush(NULL);
    dppo_.has_ended = 1;
    if (dppo_.is_deadly)
        _Exit(0);
    MPI_Finalize();
}

#endif
