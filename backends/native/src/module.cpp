// What Python calls: arrays are checked, and handed on as addresses.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "levels.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace fixedpoint_native;

namespace {

template <typename T>
using Read = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <typename T>
using Write = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

template <typename T>
using Old = std::tuple<Read<T>, Read<T>, Read<T>, Read<T>>;
template <typename T>
using History = std::tuple<Write<T>, Write<T>, Write<T>>;
template <typename T>
using Known = std::tuple<Read<T>, Read<T>, Read<T>, Read<T>, Write<T>>;
template <typename T>
using Point = std::tuple<Write<T>, Write<T>, Write<T>, Write<T>>;
template <typename T>
using Verdict =
    std::tuple<Write<bool>, Write<T>, Write<bool>, Write<bool>, Write<T>, Write<T>, Write<T>,
               Write<uint8_t>>;

// The entries of an array, which has to have so many.
template <typename Array>
auto *of(const Array &array, int64_t size, const char *name) {
    if (int64_t(array.size()) != size)
        throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) +
                                    " entries, got " + std::to_string(array.size()));
    return array.data();
}

template <typename T>
class Kernel {
  public:
    Kernel(int64_t samples, int64_t size, int memory, bool entries, bool peaks, bool on_error,
           double rtol, double atol, double diagonal, double rounding, double smallest, double fall,
           double zero)
        : set_{samples, size, memory, entries, peaks, on_error, rtol, atol, diagonal, rounding,
               smallest, fall, zero} {
        if (samples < 1 || size < 1 || memory < 1 || memory > largest_memory)
            throw std::invalid_argument("samples, size and memory must be positive, and memory "
                                        "at most " + std::to_string(largest_memory));
    }

    int advance(int pushed, int slot, int count, const Read<T> &value, const Read<T> &image,
                const Old<T> &old, const History<T> &history, const Read<T> &envelope,
                const Known<T> &known, const std::optional<Read<bool>> &active,
                const std::optional<Read<bool>> &shortened,
                const Point<T> &point, const Verdict<T> &verdict) const {
        const int64_t b = set_.samples, all = b * set_.size, m = set_.memory;
        const int64_t parts = set_.entries ? all : b;
        if (pushed < 0 || slot < 0 || slot >= m || slot > pushed || count < 0)
            throw std::invalid_argument("pushed, slot and count must be those of a step");
        const Arrays<T> at{
            .old_value = of(std::get<0>(old), all, "the old value"),
            .old_increment = of(std::get<1>(old), all, "the old increment"),
            .old_norm = of(std::get<2>(old), b, "the old norm"),
            .old_magnitude = of(std::get<3>(old), b, "the old magnitude"),
            .value = of(value, all, "the value"),
            .image = of(image, all, "the image"),
            .envelope = of(envelope, b, "the envelope"),
            .active = active ? of(*active, b, "the active samples") : nullptr,
            .shortened = shortened ? of(*shortened, b, "the shortened samples") : nullptr,
            .residuals = of(std::get<0>(history), all * m, "the residuals"),
            .images = of(std::get<1>(history), all * m, "the images"),
            .gram = of(std::get<2>(history), b * m * m, "the Gram matrices"),
            .amplification = of(std::get<4>(known), b * window, "the amplification"),
            .first = of(std::get<0>(known), b, "the first norm"),
            .highest = of(std::get<1>(known), b, "the highest norm"),
            .largest = of(std::get<2>(known), parts, "the largest sizes"),
            .sizes = of(std::get<3>(known), 2 * b, "the sizes"),
            .increment = of(std::get<0>(point), all, "the increment"),
            .norm = of(std::get<1>(point), b, "the norm"),
            .magnitude = of(std::get<2>(point), b, "the magnitude"),
            .proposal = of(std::get<3>(point), all, "the proposal"),
            .error = of(std::get<1>(verdict), b, "the error"),
            .new_highest = of(std::get<4>(verdict), b, "the new highest norm"),
            .new_largest = of(std::get<5>(verdict), parts, "the new largest sizes"),
            .new_sizes = of(std::get<6>(verdict), 2 * b, "the new sizes"),
            .satisfied = of(std::get<0>(verdict), b, "what is satisfied"),
            .hidden = of(std::get<2>(verdict), b, "what is hidden"),
            .vanished = of(std::get<3>(verdict), b, "what vanished"),
            .remarks = of(std::get<7>(verdict), b, "the remarks"),
        };
        const int rows = std::min<int64_t>(pushed + 1, m);
        nb::gil_scoped_release released;
        return advance_(set_, at, slot, rows, count, T(1) / T(pushed + 1));
    }

  private:
    Settings set_;
    Advance<T> advance_ = best<T>();
};

template <typename T>
void bind(nb::module_ &module, const char *name) {
    nb::class_<Kernel<T>>(module, name)
        .def(nb::init<int64_t, int64_t, int, bool, bool, bool, double, double, double, double, double,
                      double, double>(),
             "samples"_a, "size"_a, "memory"_a, "entries"_a, "peaks"_a, "on_error"_a, "rtol"_a, "atol"_a,
             "diagonal"_a, "rounding"_a, "smallest"_a, "fall"_a, "zero"_a)
        .def("advance", &Kernel<T>::advance, "pushed"_a, "slot"_a, "count"_a, "value"_a,
             "image"_a, "old"_a, "history"_a.noconvert(), "envelope"_a, "known"_a.noconvert(),
             "active"_a.none(), "shortened"_a.none(), "point"_a.noconvert(), "verdict"_a.noconvert());
}

}  // namespace

NB_MODULE(_kernels, module) {
    module.attr("LARGEST_MEMORY") = largest_memory;
    module.attr("RISEN") = int(risen);
    bind<float>(module, "AndersonFloat32");
    bind<double>(module, "AndersonFloat64");
}
