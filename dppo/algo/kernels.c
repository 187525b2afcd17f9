/* The hot loops in C: a row of acting, the loss of a minibatch, and what is element by element.
 *
 * Every function has its twin in NumPy, which is the reference and the fallback; dppo/algo/compiled.py says which.
 * Nothing here is fused or reordered by the compiler (-ffp-contract=off, no -ffast-math), and exp and tanh are written
 * out: so results are the same bits on every CPU, however wide its vectors are. What is element by element in NumPy
 * has NumPy's own bits.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

/* -- arguments -------------------- */

enum { MOST_ARRAYS = 48 };

typedef struct {
    PyObject *const *args;
    Py_ssize_t num_args, next;
    Py_buffer views[MOST_ARRAYS];
    int num_views;
    int failed;
} Arguments;

static void fail(Arguments *a, const char *text)
{
    if (!a->failed)
        PyErr_Format(PyExc_ValueError, "argument %zd: %s", a->next, text);
    a->failed = 1;
}

/* The next argument: a C-contiguous array of `kind` ('f' float32, 'd' float64, 'l' int64); of `size` elements, or of
 * any number if that is negative. Returns its data, and its number of elements in `found` if that is not NULL. */
static void *array_of(Arguments *a, char kind, Py_ssize_t size, int writable, Py_ssize_t *found)
{
    if (found)
        *found = 0;
    if (a->failed)
        return NULL;
    if (a->next >= a->num_args || a->num_views == MOST_ARRAYS) {
        fail(a, "there are too few arguments, or too many");
        return NULL;
    }
    Py_buffer *view = &a->views[a->num_views];
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(a->args[a->next], view, flags)) {
        a->failed = 1;
        return NULL;
    }
    a->num_views++;
    const char *format = view->format ? view->format : "B";
    int is_right = kind == 'l' ? (*format == 'l' || *format == 'q') && view->itemsize == 8 : *format == kind;
    if (!is_right || format[1])
        fail(a, kind == 'f' ? "must be float32" : kind == 'd' ? "must be float64" : "must be int64");
    else if (size >= 0 && view->len != size * view->itemsize)
        fail(a, "has a wrong number of elements");
    if (found)
        *found = view->itemsize ? view->len / view->itemsize : 0;
    a->next++;
    return view->buf;
}

static double number_of(Arguments *a)
{
    if (a->failed)
        return 0.0;
    if (a->next >= a->num_args) {
        fail(a, "there are too few arguments");
        return 0.0;
    }
    double value = PyFloat_AsDouble(a->args[a->next++]);
    if (value == -1.0 && PyErr_Occurred())
        a->failed = 1;
    return value;
}

static PyObject *end(Arguments *a)
{
    for (int i = 0; i < a->num_views; i++)
        PyBuffer_Release(&a->views[i]);
    if (a->failed)
        return NULL;
    Py_RETURN_NONE;
}

/* -- exp and tanh, within 2 units in the last place -------------------- */

INLINE float smaller(float a, float b) { return a != a || a <= b ? a : b; }
INLINE float larger(float a, float b) { return a != a || a >= b ? a : b; }

/* exp(x) = s + s q with s = 2^n, q = exp(r) - 1 and |r| <= log(2)/2: Taylor's series to r^7, whose rest is below 1e-8. */
INLINE void split_exp(float x, float *s, float *q)
{
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: its last bits are the nearest integer */
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    float n = shifted - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    *q = (p * r) * r + r;
    int32_t power = (int32_t)((uint32_t)(bits - 0x4B400000 + 127) << 23);
    memcpy(s, &power, 4);
}

INLINE float exp_of(float x)
{
    float s, q, bounded = larger(smaller(x, 88.0f), -87.0f);
    split_exp(bounded, &s, &q);
    float y = s + s * q;
    return x < -87.0f ? 0.0f : x > 88.0f ? y * INFINITY : y;
}

/* tanh x = E / (E + 2) with E = exp(2 x) - 1; from 9 on it is 1. */
INLINE float tanh_of(float x)
{
    float s, q;
    split_exp(2.0f * larger(smaller(x, 9.5f), -9.5f), &s, &q);
    float e = s * q + (s - 1.0f);
    return e / (e + 2.0f);
}

/* -- element by element: NumPy's own bits -------------------- */

FOR_EVERY_CPU static void add_bias_to(float *x, const float *bias, Py_ssize_t groups, Py_ssize_t rows, Py_ssize_t width)
{
    for (Py_ssize_t g = 0; g < groups; g++)
        for (Py_ssize_t b = 0; b < rows; b++)
            for (Py_ssize_t j = 0; j < width; j++)
                x[(g * rows + b) * width + j] += bias[g * width + j];
}

static PyObject *add_bias(PyObject *self, PyObject *const *args, Py_ssize_t num_args)
{
    Arguments a = {.args = args, .num_args = num_args};
    Py_ssize_t size, biases;
    float *x = array_of(&a, 'f', -1, 1, &size);
    const float *bias = array_of(&a, 'f', -1, 0, &biases);
    Py_ssize_t width = (Py_ssize_t)number_of(&a);
    if (!a.failed && size && (width < 1 || biases % width || size % biases))
        fail(&a, "the shapes do not fit");
    if (!a.failed && size)
        add_bias_to(x, bias, biases / width, size / biases, width);
    return end(&a);
}

FOR_EVERY_CPU static void tanh_gradient_of(const float *restrict d_out, float *restrict out, Py_ssize_t size)
{
    for (Py_ssize_t i = 0; i < size; i++)
        out[i] = d_out[i] * (1.0f - out[i] * out[i]);
}

static PyObject *tanh_gradient(PyObject *self, PyObject *const *args, Py_ssize_t num_args)
{
    Arguments a = {.args = args, .num_args = num_args};
    Py_ssize_t size;
    const float *d_out = array_of(&a, 'f', -1, 0, &size);
    float *out = array_of(&a, 'f', size, 1, NULL);
    if (!a.failed)
        tanh_gradient_of(d_out, out, size);
    return end(&a);
}

typedef struct { float keep_m, take_m, keep_v, take_v, eps, rate; } AdamFactors;

FOR_EVERY_CPU static void adam_of(float *restrict params, float *restrict m, float *restrict v,
                                  const float *restrict gradient, Py_ssize_t size, AdamFactors f)
{
    for (Py_ssize_t i = 0; i < size; i++) {
        float new_m = m[i] * f.keep_m + gradient[i] * f.take_m;
        float root = gradient[i] * f.take_v;
        float new_v = v[i] * f.keep_v + root * root;
        m[i] = new_m;
        v[i] = new_v;
        params[i] -= new_m / (sqrtf(new_v) + f.eps) * f.rate;
    }
}

static PyObject *adam(PyObject *self, PyObject *const *args, Py_ssize_t num_args)
{
    Arguments a = {.args = args, .num_args = num_args};
    Py_ssize_t size;
    float *params = array_of(&a, 'f', -1, 1, &size);
    float *m = array_of(&a, 'f', size, 1, NULL), *v = array_of(&a, 'f', size, 1, NULL);
    const float *gradient = array_of(&a, 'f', size, 0, NULL);
    AdamFactors f;
    f.keep_m = (float)number_of(&a);
    f.take_m = (float)number_of(&a);
    f.keep_v = (float)number_of(&a);
    f.take_v = (float)number_of(&a);
    f.eps = (float)number_of(&a);
    f.rate = (float)number_of(&a);
    if (!a.failed)
        adam_of(params, m, v, gradient, size, f);
    return end(&a);
}

/* Of float64 rows the mean is subtracted in float64. */
FOR_EVERY_CPU static void normalise_of(const void *rows, const void *mean, int is_double, const float *inverse_std,
                                       Py_ssize_t size, Py_ssize_t width, float clip, float *restrict out)
{
    for (Py_ssize_t b = 0; b < size; b += width) {
        if (is_double)
            for (Py_ssize_t j = 0; j < width; j++)
                out[b + j] = (float)(((const double *)rows)[b + j] - ((const double *)mean)[j]);
        else
            for (Py_ssize_t j = 0; j < width; j++)
                out[b + j] = ((const float *)rows)[b + j] - ((const float *)mean)[j];
        for (Py_ssize_t j = 0; j < width; j++)
            out[b + j] = larger(smaller(out[b + j] * inverse_std[j], clip), -clip);
    }
}

static PyObject *normalise(PyObject *self, PyObject *const *args, Py_ssize_t num_args)
{
    Arguments a = {.args = args, .num_args = num_args};
    Py_ssize_t size, width;
    float *out = array_of(&a, 'f', -1, 1, &size);
    const float *inverse_std = array_of(&a, 'f', -1, 0, &width);
    double clip = number_of(&a);
    int is_double = (int)number_of(&a);
    const void *rows = array_of(&a, is_double ? 'd' : 'f', size, 0, NULL);
    const void *mean = array_of(&a, is_double ? 'd' : 'f', width, 0, NULL);
    if (!a.failed && size && (!width || size % width))
        fail(&a, "the shapes do not fit");
    if (!a.failed && size)
        normalise_of(rows, mean, is_double, inverse_std, size, width, (float)clip, out);
    return end(&a);
}

/* out = centre + scale actions, within [low, high] */
FOR_EVERY_CPU static void scaled_of(const float *actions, const float *centre, const float *scale, const float *low,
                                    const float *high, Py_ssize_t size, Py_ssize_t width, float *restrict out)
{
    for (Py_ssize_t b = 0; b < size; b += width)
        for (Py_ssize_t j = 0; j < width; j++)
            out[b + j] = smaller(larger(centre[j] + scale[j] * actions[b + j], low[j]), high[j]);
}

static PyObject *scaled(PyObject *self, PyObject *const *args, Py_ssize_t num_args)
{
    Arguments a = {.args = args, .num_args = num_args};
    Py_ssize_t size, width;
    const float *actions = array_of(&a, 'f', -1, 0, &size), *centre = array_of(&a, 'f', -1, 0, &width);
    const float *scale = array_of(&a, 'f', width, 0, NULL), *low = array_of(&a, 'f', width, 0, NULL);
    const float *high = array_of(&a, 'f', width, 0, NULL);
    float *out = array_of(&a, 'f', size, 1, NULL);
    if (!a.failed && size && (!width || size % width))
        fail(&a, "the shapes do not fit");
    if (!a.failed && size)
        scaled_of(actions, centre, scale, low, high, size, width, out);
    return end(&a);
}

/* -- a row of acting -------------------- */

enum { WIDEST = 1024, MOST_LAYERS = 16 };

typedef struct { const float *weight, *bias; Py_ssize_t width; } Layer;

typedef float Sixteen __attribute__((vector_size(64), aligned(4), may_alias));
typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

/* y [rows, fan_out] = bias + x [rows, fan_in] weight, from column `j` on, LANES * COUNT columns at a time. The inner
 * loops have fixed bounds, so that sums stay in registers. Each is one chain in the order of the inputs: its bits do
 * not depend on how many rows there are, nor on LANES. */
#define DENSE(ROWS, VECTOR, LANES, COUNT)                                                                      \
    for (; j + LANES * COUNT <= fan_out; j += LANES * COUNT) {                                                 \
        VECTOR sums[ROWS][COUNT];                                                                              \
        for (int r = 0; r < ROWS; r++)                                                                         \
            for (int c = 0; c < COUNT; c++)                                                                    \
                sums[r][c] = *(const VECTOR *)(bias + j + LANES * c);                                          \
        for (Py_ssize_t k = 0; k < fan_in; k++)                                                                \
            for (int c = 0; c < COUNT; c++) {                                                                  \
                VECTOR weights = *(const VECTOR *)(weight + k * fan_out + j + LANES * c);                      \
                for (int r = 0; r < ROWS; r++)                                                                 \
                    sums[r][c] += x[r * fan_in + k] * weights;                                                 \
            }                                                                                                  \
        for (int r = 0; r < ROWS; r++)                                                                         \
            for (int c = 0; c < COUNT; c++)                                                                    \
                *(VECTOR *)(y + r * fan_out + j + LANES * c) = sums[r][c];                                     \
    }

#define DENSE_ROWS(ROWS)                                                                                       \
    INLINE void dense_##ROWS(const float *x, Py_ssize_t fan_in, const float *weight, const float *bias,        \
                             Py_ssize_t fan_out, float *y)                                                     \
    {                                                                                                          \
        Py_ssize_t j = 0;                                                                                      \
        DENSE(ROWS, Sixteen, 16, 4)                                                                            \
        DENSE(ROWS, Sixteen, 16, 1)                                                                            \
        DENSE(ROWS, Four, 4, 1)                                                                                \
        DENSE(ROWS, float, 1, 1)                                                                               \
    }

DENSE_ROWS(1)
DENSE_ROWS(4)

FOR_EVERY_CPU static void tower_of(const float *inputs, Py_ssize_t rows, Py_ssize_t width, const Layer *layers,
                                   int num_layers, int is_relu, const float *tail, Py_ssize_t num_tail, float *out)
{
    float buffers[2][4 * WIDEST];
    for (Py_ssize_t b = 0, block; b < rows; b += block) {
        block = rows - b >= 4 ? 4 : 1;
        const float *x = inputs + b * width;
        Py_ssize_t fan_in = width;
        for (int l = 0; l < num_layers; l++) {
            const Layer *layer = &layers[l];
            float *y = buffers[l % 2];
            if (block == 4)
                dense_4(x, fan_in, layer->weight, layer->bias, layer->width, y);
            else
                dense_1(x, fan_in, layer->weight, layer->bias, layer->width, y);
            if (l == num_layers - 1)
                break;
            Py_ssize_t size = block * layer->width;
            if (is_relu)
                for (Py_ssize_t j = 0; j < size; j++)
                    y[j] = larger(y[j], 0.0f);
            else
                for (Py_ssize_t j = 0; j < size; j++)
                    y[j] = tanh_of(y[j]);
            x = y;
            fan_in = layer->width;
        }
        const float *y = buffers[(num_layers - 1) % 2];
        Py_ssize_t outputs = layers[num_layers - 1].width;
        for (Py_ssize_t r = 0; r < block; r++) {
            float *row = out + (b + r) * (outputs + num_tail);
            memcpy(row, y + r * outputs, sizeof(float) * (size_t)outputs);
            memcpy(row + outputs, tail, sizeof(float) * (size_t)num_tail);
        }
    }
}

static PyObject *tower(PyObject *self, PyObject *const *args, Py_ssize_t num_args)
{
    Arguments a = {.args = args, .num_args = num_args};
    Py_ssize_t size, outputs, num_tail;
    Layer layers[MOST_LAYERS];
    const float *inputs = array_of(&a, 'f', -1, 0, &size);
    float *out = array_of(&a, 'f', -1, 1, &outputs);
    const float *tail = array_of(&a, 'f', -1, 0, &num_tail);
    Py_ssize_t rows = (Py_ssize_t)number_of(&a);
    int is_relu = (int)number_of(&a);
    if (!a.failed && (rows < 1 || size % rows || outputs % rows))
        fail(&a, "the rows do not fit");
    Py_ssize_t width = a.failed ? 0 : size / rows, fan_in = width;
    int num_layers = 0;
    while (!a.failed && a.next < num_args) {
        if (num_layers == MOST_LAYERS) {
            fail(&a, "there are too many layers");
            break;
        }
        Layer *layer = &layers[num_layers++];
        Py_ssize_t weights;
        layer->weight = array_of(&a, 'f', -1, 0, &weights);
        layer->bias = array_of(&a, 'f', -1, 0, &layer->width);
        if (!a.failed && (layer->width > WIDEST || weights != fan_in * layer->width))
            fail(&a, "the weights do not fit");
        fan_in = layer->width;
    }
    if (!a.failed && (!num_layers || (fan_in + num_tail) * rows != outputs))
        fail(&a, "the output does not fit");
    if (!a.failed)
        tower_of(inputs, rows, width, layers, num_layers, is_relu, tail, num_tail, out);
    return end(&a);
}

/* -- the loss of a minibatch -------------------- */

enum { POLICY_CLIP, POLICY_A3C };
enum { COUNT, LOSS, POLICY_LOSS, VALUE_LOSS, ENTROPY, APPROX_KL, CLIP_FRACTION, NUM_SUMS };

typedef struct { int objective; float least_ratio, most_ratio, value_clip, value_coef, entropy_coef; } LossFactors;

typedef struct {
    Py_ssize_t rows, size; /* of a head */
    const float *head, *value, *log_probs, *advantages, *returns, *values;
    float *d_head, *d_value;
    double *sums;
} Samples;

/* From an action's log-probability: adds to the sums, and returns the loss's gradient with respect to it. */
INLINE float policy_loss(const Samples *s, const LossFactors *f, Py_ssize_t b, float log_prob)
{
    float advantage = s->advantages[b];
    float log_ratio = smaller(log_prob - s->log_probs[b], 20.0f);
    float ratio = exp_of(log_ratio), gain, d_log_prob;
    s->sums[APPROX_KL] += (ratio - 1.0f) - log_ratio;
    if (f->objective == POLICY_A3C) {
        s->sums[POLICY_LOSS] -= log_prob * advantage;
        return -advantage;
    }
    float clipped = smaller(larger(ratio, f->least_ratio), f->most_ratio);
    gain = ratio * advantage;
    d_log_prob = gain > clipped * advantage ? 0.0f : -gain;
    s->sums[POLICY_LOSS] -= smaller(gain, clipped * advantage);
    s->sums[CLIP_FRACTION] += clipped != ratio;
    return d_log_prob;
}

INLINE void value_loss(const Samples *s, const LossFactors *f, Py_ssize_t b)
{
    float error = s->value[b] - s->returns[b], loss = 0.5f * error * error;
    if (f->value_clip != 0.0f) {
        float change = s->value[b] - s->values[b];
        float clipped = s->values[b] + smaller(larger(change, -f->value_clip), f->value_clip) - s->returns[b];
        float clipped_loss = 0.5f * clipped * clipped;
        if (clipped_loss > loss) {
            loss = clipped_loss;
            error = fabsf(change) < f->value_clip ? clipped : 0.0f;
        }
    }
    s->sums[VALUE_LOSS] += loss;
    s->d_value[b] = f->value_coef * error;
}

static void end_loss(const Samples *s, const LossFactors *f)
{
    s->sums[COUNT] = (double)s->rows;
    s->sums[LOSS] = s->sums[POLICY_LOSS] + f->value_coef * s->sums[VALUE_LOSS] - f->entropy_coef * s->sums[ENTROPY];
}

FOR_EVERY_CPU static void categorical_of(const Samples *s, const LossFactors *f, const int64_t *actions)
{
    for (Py_ssize_t b = 0; b < s->rows; b++) {
        const float *logits = s->head + b * s->size;
        float *p = s->d_head + b * s->size; /* becomes the gradient at the end */
        float most = logits[0], total = 0.0f, entropy = 0.0f;
        for (Py_ssize_t k = 1; k < s->size; k++)
            most = larger(most, logits[k]);
        for (Py_ssize_t k = 0; k < s->size; k++)
            total += p[k] = exp_of(larger(logits[k] - most, -1e30f));
        float log_total = (float)log((double)total);
        for (Py_ssize_t k = 0; k < s->size; k++) {
            p[k] /= total;
            entropy -= p[k] * (larger(logits[k] - most, -1e30f) - log_total);
        }
        float log_prob = larger(logits[actions[b]] - most, -1e30f) - log_total;
        float d_log_prob = policy_loss(s, f, b, log_prob);
        for (Py_ssize_t k = 0; k < s->size; k++) {
            float log_p = larger(logits[k] - most, -1e30f) - log_total;
            float d_entropy = p[k] * log_p + p[k] * entropy;
            p[k] = f->entropy_coef * d_entropy - p[k] * d_log_prob;
        }
        p[actions[b]] += d_log_prob;
        s->sums[ENTROPY] += entropy;
        value_loss(s, f, b);
    }
    end_loss(s, f);
}

FOR_EVERY_CPU static void gaussian_of(const Samples *s, const LossFactors *f, const float *actions)
{
    Py_ssize_t n = s->size / 2;
    const float half_log_2pi = 0.918938533f;
    for (Py_ssize_t b = 0; b < s->rows; b++) {
        const float *mean = s->head + b * s->size, *log_std = mean + n, *action = actions + b * n;
        float *d_mean = s->d_head + b * s->size, *d_log_std = d_mean + n;
        float squares = 0.0f, total = 0.0f;
        for (Py_ssize_t k = 0; k < n; k++)
            d_mean[k] = exp_of(-log_std[k]);
        for (Py_ssize_t k = 0; k < n; k++) {
            float z = (action[k] - mean[k]) * d_mean[k];
            d_log_std[k] = z * z;
            d_mean[k] *= z;
        }
        for (Py_ssize_t k = 0; k < n; k++) {
            squares += d_log_std[k];
            total += log_std[k];
        }
        float d_log_prob = policy_loss(s, f, b, -0.5f * squares - total - half_log_2pi * (float)n);
        for (Py_ssize_t k = 0; k < n; k++) {
            d_mean[k] *= d_log_prob;
            d_log_std[k] = (d_log_std[k] - 1.0f) * d_log_prob - f->entropy_coef;
        }
        s->sums[ENTROPY] += total + (half_log_2pi + 0.5f) * (float)n;
        value_loss(s, f, b);
    }
    end_loss(s, f);
}

/* loss(head, value, actions, log_probs, advantages, returns, values, d_head, d_value, sums, objective, clip,
 * value_clip, value_coef, entropy_coef): actions are int64, or float32 of normals. */
static PyObject *loss_of(PyObject *const *args, Py_ssize_t num_args, char kind)
{
    Arguments a = {.args = args, .num_args = num_args};
    Samples s;
    LossFactors f;
    Py_ssize_t heads;
    s.head = array_of(&a, 'f', -1, 0, &heads);
    s.value = array_of(&a, 'f', -1, 0, &s.rows);
    if (!a.failed && (s.rows < 1 || heads % s.rows))
        fail(&a, "the rows do not fit");
    s.size = a.failed ? 0 : heads / s.rows;
    void *actions = array_of(&a, kind, kind == 'l' ? s.rows : s.rows * (s.size / 2), 0, NULL);
    s.log_probs = array_of(&a, 'f', s.rows, 0, NULL);
    s.advantages = array_of(&a, 'f', s.rows, 0, NULL);
    s.returns = array_of(&a, 'f', s.rows, 0, NULL);
    s.values = array_of(&a, 'f', s.rows, 0, NULL);
    s.d_head = array_of(&a, 'f', heads, 1, NULL);
    s.d_value = array_of(&a, 'f', s.rows, 1, NULL);
    s.sums = array_of(&a, 'd', NUM_SUMS, 1, NULL);
    f.objective = (int)number_of(&a);
    double clip = number_of(&a);
    f.least_ratio = (float)(1.0 - clip);
    f.most_ratio = (float)(1.0 + clip);
    f.value_clip = (float)number_of(&a);
    f.value_coef = (float)number_of(&a);
    f.entropy_coef = (float)number_of(&a);
    for (Py_ssize_t b = 0; !a.failed && kind == 'l' && b < s.rows; b++)
        if (((int64_t *)actions)[b] < 0 || ((int64_t *)actions)[b] >= s.size)
            fail(&a, "an action is out of range");
    if (!a.failed) {
        memset(s.sums, 0, NUM_SUMS * sizeof(double));
        if (kind == 'l')
            categorical_of(&s, &f, actions);
        else
            gaussian_of(&s, &f, actions);
    }
    return end(&a);
}

static PyObject *categorical_loss(PyObject *self, PyObject *const *args, Py_ssize_t num_args)
{
    return loss_of(args, num_args, 'l');
}

static PyObject *gaussian_loss(PyObject *self, PyObject *const *args, Py_ssize_t num_args)
{
    return loss_of(args, num_args, 'f');
}

/* -- the module -------------------- */

#define METHOD(name, text) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, text}

static PyMethodDef methods[] = {
    METHOD(add_bias, "add_bias(x, bias, width): x [G, B, width] += bias [G, 1, width]."),
    METHOD(tanh_gradient, "tanh_gradient(d_out, out): out = d_out (1 - out^2)."),
    METHOD(adam, "adam(params, m, v, gradient, keep_m, take_m, keep_v, take_v, eps, rate): algo/optim.py."),
    METHOD(normalise, "normalise(out, inverse_std, clip, is_double, rows, mean): algo/moments.py."),
    METHOD(scaled, "scaled(actions, centre, scale, low, high, out): models/gaussian.py, to_env."),
    METHOD(tower, "tower(inputs, out, tail, rows, is_relu, weight, bias, ...): models/mlp.py, one tower; `tail` follows."),
    METHOD(categorical_loss, "algo/losses.py for one choice."),
    METHOD(gaussian_loss, "algo/losses.py for normals."),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "kernels", .m_doc = "The hot loops in C.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit_kernels(void)
{
    return PyModule_Create(&module);
}
