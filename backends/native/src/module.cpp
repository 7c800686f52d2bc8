// What Python calls: arrays are checked, and handed on as addresses.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "levels.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace fixedpoint_native;

namespace {

template <typename T>
using Read = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <typename T>
using Write = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

// The value and the increment; numbers of each sample, and the largest sizes.
template <typename T>
using Old = std::tuple<Read<T>, Read<T>, Read<T>, Read<T>>;
template <typename T>
using Known = std::tuple<Read<T>, Write<T>>;
// The increment and what follows; numbers and flags of each sample, and the largest sizes.
template <typename T>
using Made = std::tuple<Write<T>, Write<T>, Write<T>, Write<bool>, Write<T>>;
using Flags = std::optional<Read<bool>>;

constexpr int numbers = 6;  // of each sample: fixedpoint_native/kernel.py says which

// The entries of an array, which has to have so many.
template <typename Array>
auto *of(const Array &array, int64_t size, const char *name) {
    if (int64_t(array.size()) != size)
        throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) +
                                    " entries, got " + std::to_string(array.size()));
    return array.data();
}

// Runs a step of all samples on several threads, each with groups of them that are whole.
template <typename T, typename Memory>
int run(const Settings &set, const Arrays<T> &at, const Memory &memory, int threads) {
    static const Advance<T, Memory> advance = best(&memory);
    nb::gil_scoped_release released;
    const int64_t groups = (set.samples + lanes - 1) / lanes;
    const int64_t parts = std::clamp<int64_t>(threads, 1, groups);
    auto part = [&](int64_t k) {
        const int64_t first = groups * k / parts * lanes, last = groups * (k + 1) / parts * lanes;
        advance(set, at, memory, first, std::min(last, set.samples));
    };
    std::vector<std::thread> others;
    for (int64_t k = 1; k < parts; k++) others.emplace_back(part, k);
    part(0);
    for (auto &other : others) other.join();
    int any = plain;
    for (int64_t b = 0; b < set.samples; b++) {
        const bool ends = at.remarks[b] == plain && (at.satisfied[b] || at.hidden[b]);
        any |= at.remarks[b] | (ends ? ended : plain);
    }
    return any;
}

template <typename T>
class Kernel {
  public:
    Kernel(int64_t samples, int64_t size, int memory, bool entries, bool peaks, bool on_error,
           double rtol, double atol, double least, double rounding, double smallest, double fall,
           double zero, double roundings)
        : set_{samples, size, memory, entries, peaks, on_error, rtol, atol, least, rounding,
               smallest, fall, zero, roundings} {
        if (samples < 1 || size < 1 || memory < 1)
            throw std::invalid_argument("samples, size and memory must be positive");
    }

  protected:
    void limit(int most) const {
        if (set_.memory > most)
            throw std::invalid_argument("memory must be at most " + std::to_string(most));
    }

    Arrays<T> arrays(int pushed, int slot, int count, const Read<T> &value, const Read<T> &image,
                     const Old<T> &old, const Known<T> &known, const Flags &active,
                     const Flags &shortened, const Made<T> &made) const {
        const int64_t b = set_.samples, all = b * set_.size, m = set_.memory;
        const int64_t parts = set_.entries ? all : b;
        if (pushed < 0 || slot < 0 || slot >= m || slot > pushed || count < 0)
            throw std::invalid_argument("pushed, slot and count must be those of a step");
        const T *before = of(std::get<2>(old), numbers * b, "the old numbers");
        T *now = of(std::get<2>(made), numbers * b, "the numbers");
        bool *flags = of(std::get<3>(made), 4 * b, "the flags");
        return {
            .old_value = of(std::get<0>(old), all, "the old value"),
            .old_increment = of(std::get<1>(old), all, "the old increment"),
            .old_norm = before,
            .old_magnitude = before + b,
            .value = of(value, all, "the value"),
            .image = of(image, all, "the image"),
            .active = active ? of(*active, b, "the active samples") : nullptr,
            .shortened = shortened ? of(*shortened, b, "the shortened samples") : nullptr,
            .first = of(std::get<0>(known), b, "the first norm"),
            .highest = before + 3 * b,
            .largest = of(std::get<3>(old), parts, "the old largest sizes"),
            .sizes = before + 4 * b,
            .amplification = of(std::get<1>(known), b * window, "the amplification"),
            .increment = of(std::get<0>(made), all, "the increment"),
            .norm = now,
            .magnitude = now + b,
            .error = now + 2 * b,
            .new_highest = now + 3 * b,
            .new_largest = of(std::get<4>(made), parts, "the largest sizes"),
            .new_sizes = now + 4 * b,
            .satisfied = flags,
            .hidden = flags + b,
            .vanished = flags + 2 * b,
            .remarks = reinterpret_cast<unsigned char *>(flags + 3 * b),
            .slot = slot,
            .rows = int(std::min<int64_t>(pushed + 1, m)),
            .count = count,
        };
    }

    // A vector of every sample.
    auto *state(const auto &array, const char *name) const {
        return of(array, set_.samples * set_.size, name);
    }

    auto *history(const Write<T> &array, const char *name) const {
        return of(array, set_.samples * set_.size * set_.memory, name);
    }

    Settings set_;
};

template <typename T>
class Anderson : public Kernel<T> {
  public:
    template <typename... Options>
    explicit Anderson(Options... options) : Kernel<T>(options...) {
        this->limit(anderson_memory);
    }

    int advance(int pushed, int slot, int count, const Read<T> &value, const Read<T> &image,
                const Old<T> &old, const Known<T> &known, const Flags &active,
                const Flags &shortened, const Made<T> &made,
                const std::tuple<Write<T>, Write<T>, Write<T>, Read<T>> &memory,
                int threads) const {
        const auto at = this->arrays(pushed, slot, count, value, image, old, known, active,
                                     shortened, made);
        const int64_t b = this->set_.samples, m = this->set_.memory;
        const AndersonArrays<T> kept{
            .residuals = this->history(std::get<0>(memory), "the residuals"),
            .images = this->history(std::get<1>(memory), "the images"),
            .gram = of(std::get<2>(memory), b * m * m, "the Gram matrices"),
            .envelope = of(std::get<3>(memory), b, "the envelope"),
            .proposal = this->state(std::get<1>(made), "the proposal"),
            .share = T(1) / T(pushed + 1),
        };
        return run(this->set_, at, kept, threads);
    }
};

template <typename T>
class Broyden : public Kernel<T> {
  public:
    template <typename... Options>
    explicit Broyden(Options... options) : Kernel<T>(options...) {
        this->limit(broyden_memory);
    }

    int advance(int pushed, int slot, int count, const Read<T> &value, const Read<T> &image,
                const Old<T> &old, const Known<T> &known, const Flags &active,
                const Flags &shortened, const Made<T> &made,
                const std::tuple<Write<T>, Write<T>, Read<T>, std::optional<Read<T>>> &memory,
                int threads) const {
        const auto at = this->arrays(pushed, slot, count, value, image, old, known, active,
                                     shortened, made);
        const auto &before = std::get<3>(memory);
        const BroydenArrays<T> kept{
            .left = this->history(std::get<0>(memory), "the left columns"),
            .right = this->history(std::get<1>(memory), "the right columns"),
            .scale = of(std::get<2>(memory), this->set_.samples, "the scale"),
            .before = before ? this->state(*before, "the old direction") : nullptr,
            .direction = this->state(std::get<1>(made), "the direction"),
        };
        return run(this->set_, at, kept, threads);
    }
};

template <typename T>
class Picard : public Kernel<T> {
  public:
    template <typename... Options>
    explicit Picard(Options... options) : Kernel<T>(options...) {}

    int advance(int pushed, int slot, int count, const Read<T> &value, const Read<T> &image,
                const Old<T> &old, const Known<T> &known, const Flags &active,
                const Flags &shortened, const Made<T> &made,
                const std::tuple<Read<T>, double, double, double> &memory, int threads) const {
        const auto at = this->arrays(pushed, slot, count, value, image, old, known, active,
                                     shortened, made);
        const PicardArrays<T> kept{
            .earlier = this->state(std::get<0>(memory), "the earlier increment"),
            .correction = this->state(std::get<1>(made), "the correction"),
            .damping = T(std::get<1>(memory)),
            .parallel = T(std::get<2>(memory)),
            .explained = T(std::get<3>(memory)),
        };
        return run(this->set_, at, kept, threads);
    }
};

template <typename Class>
void bind(nb::module_ &module, const char *name) {
    nb::class_<Class>(module, name)
        .def(nb::init<int64_t, int64_t, int, bool, bool, bool, double, double, double, double,
                      double, double, double, double>(),
             "samples"_a, "size"_a, "memory"_a, "entries"_a, "peaks"_a, "on_error"_a, "rtol"_a,
             "atol"_a, "least"_a, "rounding"_a, "smallest"_a, "fall"_a, "zero"_a,
             "roundings"_a)
        .def("advance", &Class::advance, "pushed"_a, "slot"_a, "count"_a, "value"_a, "image"_a,
             "old"_a, "known"_a.noconvert(), "active"_a.none(), "shortened"_a.none(),
             "made"_a.noconvert(), "memory"_a.noconvert(), "threads"_a);
}

}  // namespace

NB_MODULE(_kernels, module) {
    nb::set_leak_warnings(false);  // a solve may be under way when Python ends
    module.attr("ANDERSON_MEMORY") = anderson_memory;
    module.attr("BROYDEN_MEMORY") = broyden_memory;
    module.attr("RISEN") = int(risen);
    module.attr("ENDED") = int(ended);
    bind<Anderson<float>>(module, "AndersonFloat32");
    bind<Anderson<double>>(module, "AndersonFloat64");
    bind<Broyden<float>>(module, "BroydenFloat32");
    bind<Broyden<double>>(module, "BroydenFloat64");
    bind<Picard<float>>(module, "PicardFloat32");
    bind<Picard<double>>(module, "PicardFloat64");
}
