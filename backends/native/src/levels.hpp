// The kernels, compiled for several instruction sets; the best one is picked when the
// module is loaded.
#pragma once

#include "steps.hpp"

namespace fixedpoint_native {

#define FIXEDPOINT_DECLARE(LEVEL)                                                           \
    namespace LEVEL {                                                                       \
    template <typename T>                                                                   \
    void anderson(const Settings &, const Arrays<T> &, const AndersonArrays<T> &, int64_t,  \
                  int64_t);                                                                 \
    template <typename T>                                                                   \
    void broyden(const Settings &, const Arrays<T> &, const BroydenArrays<T> &, int64_t,    \
                 int64_t);                                                                  \
    template <typename T>                                                                   \
    void picard(const Settings &, const Arrays<T> &, const PicardArrays<T> &, int64_t,      \
                int64_t);                                                                   \
    }

FIXEDPOINT_DECLARE(baseline)
#ifdef FIXEDPOINT_X86_LEVELS
FIXEDPOINT_DECLARE(avx2)
FIXEDPOINT_DECLARE(avx512)
#endif

enum class Level { baseline, avx2, avx512 };

inline Level best_level() {
#ifdef FIXEDPOINT_X86_LEVELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
        return Level::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Level::avx2;
#endif
    return Level::baseline;
}

template <typename T>
Advance<T, AndersonArrays<T>> best(const AndersonArrays<T> *) {
#ifdef FIXEDPOINT_X86_LEVELS
    if (best_level() == Level::avx512) return avx512::anderson<T>;
    if (best_level() == Level::avx2) return avx2::anderson<T>;
#endif
    return baseline::anderson<T>;
}

template <typename T>
Advance<T, BroydenArrays<T>> best(const BroydenArrays<T> *) {
#ifdef FIXEDPOINT_X86_LEVELS
    if (best_level() == Level::avx512) return avx512::broyden<T>;
    if (best_level() == Level::avx2) return avx2::broyden<T>;
#endif
    return baseline::broyden<T>;
}

template <typename T>
Advance<T, PicardArrays<T>> best(const PicardArrays<T> *) {
#ifdef FIXEDPOINT_X86_LEVELS
    if (best_level() == Level::avx512) return avx512::picard<T>;
    if (best_level() == Level::avx2) return avx2::picard<T>;
#endif
    return baseline::picard<T>;
}

}  // namespace fixedpoint_native
