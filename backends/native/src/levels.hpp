// The kernels, compiled for several instruction sets; the best one is picked when the
// module is loaded.
#pragma once

#include "anderson.hpp"

namespace fixedpoint_native {

#define FIXEDPOINT_DECLARE(LEVEL)                                                       \
    namespace LEVEL {                                                                   \
    template <typename T>                                                               \
    int advance(const Settings &, const Arrays<T> &, int slot, int rows, int count, T share); \
    }

FIXEDPOINT_DECLARE(baseline)
#ifdef FIXEDPOINT_X86_LEVELS
FIXEDPOINT_DECLARE(avx2)
FIXEDPOINT_DECLARE(avx512)
#endif

template <typename T>
using Advance = int (*)(const Settings &, const Arrays<T> &, int, int, int, T);

template <typename T>
Advance<T> best() {
#ifdef FIXEDPOINT_X86_LEVELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
        return avx512::advance<T>;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return avx2::advance<T>;
#endif
    return baseline::advance<T>;
}

}  // namespace fixedpoint_native
