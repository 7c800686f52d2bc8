// A step of plain iteration: fixedpoint/solvers/picard.py.
// Compiled once for each instruction set, whose name is FIXEDPOINT_LEVEL.
#include "levels.hpp"
#include "test.hpp"

namespace fixedpoint_native {
namespace FIXEDPOINT_LEVEL {
namespace {

template <typename T>
struct PicardStep : Test<PicardStep<T>, T> {
    using Base = Test<PicardStep<T>, T>;
    using Base::at, Base::set;

    const PicardArrays<T> &of;

    PicardStep(const Settings &set, const Arrays<T> &at, const PicardArrays<T> &of)
        : Base{set, at}, of(of) {}

    // The products of the increment, the one before and the one before that.
    struct Products {
        T square = 0, one = 0, mixed = 0, older = 0, two = 0;
    };

    T correction(int64_t i) const { return of.correction[i]; }

    void rest(int64_t b) {
        for (int64_t i = b * set.size; i < (b + 1) * set.size; i++) of.correction[i] = 0;
    }

    void sample(int64_t b) {
        if (!this->begins(b)) return;
        Sums<T> sum;
        const Products of_increments = multiply(b, sum);
        const T size = sum.residual;
        this->measure(b, sum);
        if (!this->takes_part(b)) return;
        const bool is_known = correct(b, of_increments, size, sum);
        const T step = this->size_of(sum.corrected, of.correction + b * set.size);
        this->judge(b, sum, step, is_known);
    }

    Products multiply(int64_t b, Sums<T> &sum) {
        const int64_t n = set.size;
        const T *z = at.value + b * n, *f = at.image + b * n, *z0 = at.old_value + b * n;
        const T *before = at.old_increment + b * n, *earlier = of.earlier + b * n;
        T *g = at.increment + b * n;
        T residual = 0, image = 0, state = 0, step = 0, changed = 0;
        T square = 0, one = 0, mixed = 0, older = 0, two = 0;
#pragma omp simd reduction(+ : residual, image, state, step, changed, square, one, mixed, older, two)
        for (int64_t i = 0; i < n; i++) {
            const T now = f[i] - z[i], dz = z[i] - z0[i], dg = now - before[i];
            g[i] = now;
            residual += now * now;
            image += f[i] * f[i];
            state += z[i] * z[i];
            step += dz * dz;
            changed += dg * dg;
            square += before[i] * before[i];
            one += now * before[i];
            mixed += before[i] * earlier[i];
            older += earlier[i] * earlier[i];
            two += now * earlier[i];
        }
        sum.residual = residual, sum.image = image, sum.state = state;
        sum.moved = step, sum.changed = changed;
        return {square, one, mixed, older, two};
    }

    static T ratio(T a, T b) { return b != 0 ? a / b : T(0); }

    // What is left to go, where g follows from the two increments before it; else g.
    bool correct(int64_t b, const Products &p, T size, Sums<T> &sum) {
        T first = ratio(p.one, p.square), second = 0, explained = first * p.one;
        if (!(size - explained <= of.parallel * size)) {
            const T rest = p.older - ratio(p.mixed * p.mixed, p.square);
            if (rest > of.parallel * p.older)
                second = ratio(p.two - ratio(p.mixed * p.one, p.square), rest);
            first -= ratio(second * p.mixed, p.square);
            explained = first * p.one + second * p.two;
        }
        const T left = 1 - first - second;
        // A recurrence of two residuals only has not been seen to hold, and one that they
        // follow no better than their rounding allows tells nothing.
        const T noise = T(set.roundings) * T(set.rounding) * at.magnitude[b];
        const bool is_known = explained > of.explained * size && left > 0 && p.older > 0 &&
                              left * at.norm[b] > noise;
        const T factor = is_known ? 1 / left : T(1), share = is_known ? second : T(0);
        const T *g = at.increment + b * set.size, *before = at.old_increment + b * set.size;
        T *correction = of.correction + b * set.size, corrected = 0;
#pragma omp simd reduction(+ : corrected)
        for (int64_t i = 0; i < set.size; i++) {
            correction[i] = of.damping * (factor * (g[i] + share * before[i]));
            corrected += correction[i] * correction[i];
        }
        sum.corrected = corrected;
        return is_known;
    }
};

}  // namespace

template <typename T>
void picard(const Settings &set, const Arrays<T> &at, const PicardArrays<T> &of, int64_t first,
            int64_t last) {
    PicardStep<T> step(set, at, of);
    for (; first < last; first++) step.sample(first);
}

template void picard(const Settings &, const Arrays<float> &, const PicardArrays<float> &,
                     int64_t, int64_t);
template void picard(const Settings &, const Arrays<double> &, const PicardArrays<double> &,
                     int64_t, int64_t);

}  // namespace FIXEDPOINT_LEVEL
}  // namespace fixedpoint_native
