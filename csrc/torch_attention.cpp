// Peak response on a CPU as torch ops on the libtorch stable ABI. agmh_fast/ops/peak_response_cpu.py calls them; here
// only what keeps memory safe is checked, since the ops can be called by anyone.
#include <algorithm>
#include <optional>
#include <tuple>

#include "attention/peak_response.h"
#include "torch_tensors.h"

namespace {

using agmh::dense;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Torch's own threads: others would wait for cores on which torch's still spin.
void torch_team(const std::function<void()>& work) {
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { work(); });
}

agmh::PeakShape shape_of(const Tensor& features, int64_t descriptors, int64_t slots) {
  STD_TORCH_CHECK(features.dim() == 4 && descriptors > 0 && slots > 0 && features.size(1) % descriptors == 0,
                  "features must be (B, D·C, H, W)");
  return {features.size(0), descriptors, features.size(1) / descriptors, slots, features.size(2) * features.size(3)};
}

// Features whose H and W merge into one axis.
agmh::FeatureView view_of(const Tensor& features, const agmh::PeakShape& shape) {
  const ScalarType type = features.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "features must be float32 or bfloat16");
  const int64_t height = features.size(2), width = features.size(3), channel = features.stride(1);
  STD_TORCH_CHECK(height == 1 || width == 1 || features.stride(2) == width * features.stride(3),
                  "features must have evenly spaced positions");
  return {features.data_ptr(),
          type == ScalarType::BFloat16,
          features.stride(0),
          shape.channels * channel,
          channel,
          features.stride(width > 1 ? 3 : 2)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attend(const Tensor& features, const Tensor& weight, bool moments) {
  STD_TORCH_CHECK(weight.dim() == 3, "weight must be (D, K, C)");
  const auto shape = shape_of(features, weight.size(0), weight.size(1));
  const auto [B, D, C, K, n] = shape;
  const int64_t Kp = agmh::padded(K);
  const Tensor attention = torch::stable::new_empty(weight, {B, D, n, Kp});
  const Tensor slot_sum = torch::stable::new_empty(weight, {B, D, n});
  const Tensor mean = torch::stable::new_empty(weight, {moments ? D : 0, K}, ScalarType::Double);
  const Tensor covariance = torch::stable::new_empty(weight, {moments ? D : 0, K, K}, ScalarType::Double);
  agmh::attend({shape, view_of(features, shape), dense<float>("weight", weight, ScalarType::Float, {D, K, C}),
                static_cast<float*>(attention.data_ptr()), static_cast<float*>(slot_sum.data_ptr()),
                moments ? static_cast<double*>(mean.data_ptr()) : nullptr,
                moments ? static_cast<double*>(covariance.data_ptr()) : nullptr},
               torch_team);
  return {attention, slot_sum, mean, covariance};
}

std::tuple<Tensor, Tensor> peak(const Tensor& features, const Tensor& attention, const Tensor& projection,
                                const Tensor& shift) {
  STD_TORCH_CHECK(projection.dim() == 3, "projection must be (D, C, K)");
  const auto shape = shape_of(features, projection.size(0), projection.size(2));
  const auto [B, D, C, K, n] = shape;
  const Tensor peaks = torch::stable::new_empty(projection, {B, D, n});
  const Tensor channel = torch::stable::new_empty(projection, {B, D, n}, ScalarType::Int);
  agmh::peak({shape, view_of(features, shape),
              dense<float>("attention", attention, ScalarType::Float, {B, D, n, agmh::padded(K)}),
              dense<float>("projection", projection, ScalarType::Float, {D, C, K}),
              dense<float>("shift", shift, ScalarType::Float, {D, C}), static_cast<float*>(peaks.data_ptr()),
              static_cast<int32_t*>(channel.data_ptr())},
             torch_team);
  return {peaks, channel};
}

const int32_t* channels_within(const Tensor& channel, const agmh::PeakShape& shape) {
  const auto* at =
      dense<int32_t>("channel", channel, ScalarType::Int, {shape.images, shape.descriptors, shape.positions});
  const int64_t count = shape.images * shape.descriptors * shape.positions;
  const bool inside = std::all_of(at, at + count, [&](int32_t c) { return 0 <= c && c < shape.channels; });
  STD_TORCH_CHECK(inside, "channel must lie from 0 to ", shape.channels - 1);
  return at;
}

std::tuple<Tensor, Tensor> channel_sums(const Tensor& grad, const Tensor& channel, const Tensor& attention,
                                        int64_t channels, int64_t slots) {
  STD_TORCH_CHECK(grad.dim() == 3 && channels > 0 && slots > 0, "grad must be (B, D, n)");
  const agmh::PeakShape shape{grad.size(0), grad.size(1), channels, slots, grad.size(2)};
  const auto [B, D, C, K, n] = shape;
  const Tensor sums = torch::stable::new_empty(grad, {D, C, K});
  const Tensor counts = torch::stable::new_empty(grad, {D, C});
  agmh::channel_sums({shape, dense<float>("grad", grad, ScalarType::Float, {B, D, n}), channels_within(channel, shape),
                      dense<float>("attention", attention, ScalarType::Float, {B, D, n, agmh::padded(K)}),
                      static_cast<float*>(sums.data_ptr()), static_cast<float*>(counts.data_ptr())},
                     torch_team);
  return {sums, counts};
}

void spread(const Tensor& features, const Tensor& grad, const Tensor& channel, const Tensor& attention,
            const Tensor& slot_sum, const Tensor& weight, const Tensor& projection,
            const std::optional<Tensor>& feedback, const std::optional<Tensor>& offset, Tensor dfeatures,
            Tensor dweight) {
  STD_TORCH_CHECK(weight.dim() == 3, "weight must be (D, K, C)");
  STD_TORCH_CHECK(feedback.has_value() == offset.has_value(), "give both feedback and offset or none");
  const auto shape = shape_of(features, weight.size(0), weight.size(1));
  const auto [B, D, C, K, n] = shape;
  bool alike = dfeatures.dim() == 4 && dfeatures.scalar_type() == features.scalar_type();
  for (int64_t axis = 0; alike && axis < 4; ++axis) alike = dfeatures.size(axis) == features.size(axis);
  STD_TORCH_CHECK(alike, "dfeatures must be of the features' shape and type");
  agmh::spread({shape, view_of(features, shape), dense<float>("grad", grad, ScalarType::Float, {B, D, n}),
                channels_within(channel, shape),
                dense<float>("attention", attention, ScalarType::Float, {B, D, n, agmh::padded(K)}),
                dense<float>("slot_sum", slot_sum, ScalarType::Float, {B, D, n}),
                dense<float>("weight", weight, ScalarType::Float, {D, K, C}),
                dense<float>("projection", projection, ScalarType::Float, {D, C, K}),
                feedback.has_value() ? dense<float>("feedback", *feedback, ScalarType::Float, {D, K, K}) : nullptr,
                offset.has_value() ? dense<float>("offset", *offset, ScalarType::Float, {D, K}) : nullptr,
                view_of(dfeatures, shape), dense<float>("dweight", dweight, ScalarType::Float, {D, K, C})},
               torch_team);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(agmh_fast, library) {
  library.def("attend(Tensor features, Tensor weight, bool moments) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def("peak(Tensor features, Tensor attention, Tensor projection, Tensor shift) -> (Tensor, Tensor)");
  library.def(
      "channel_sums(Tensor grad, Tensor channel, Tensor attention, int channels, int slots) -> (Tensor, Tensor)");
  library.def(
      "spread(Tensor features, Tensor grad, Tensor channel, Tensor attention, Tensor slot_sum, Tensor weight, Tensor "
      "projection, Tensor? feedback, Tensor? offset, Tensor(a!) dfeatures, Tensor(b!) dweight) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(agmh_fast, CPU, library) {
  library.impl("attend", TORCH_BOX(&attend));
  library.impl("peak", TORCH_BOX(&peak));
  library.impl("channel_sums", TORCH_BOX(&channel_sums));
  library.impl("spread", TORCH_BOX(&spread));
}
