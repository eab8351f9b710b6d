// The operator `gluon_aa_attention` of MXNet: names, shapes and types around the kernel.
//
//   (qkv (B, C, H, W), rel_h, rel_w) or (qkv) -> (out (B, value_channels, H, W), log_sum (B, heads, H * W))
#include <omp.h>

#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernel.h"
#include "lib_api.h"

namespace {

using mxnet::ext::MXReturnValue;
using mxnet::ext::MXTensor;
using mxnet::ext::OpResource;
typedef std::unordered_map<std::string, std::string> Attributes;

std::int64_t number(const Attributes& attributes, const std::string& name) {
  const auto found = attributes.find(name);
  if (found == attributes.end()) throw std::invalid_argument("attention: " + name + " is missing");
  try {
    std::size_t end = 0;
    const long long value = std::stoll(found->second, &end);
    if (value > 0 && value <= std::numeric_limits<int>::max() && end == found->second.size()) return value;
  } catch (const std::logic_error&) {
  }
  throw std::invalid_argument("attention: " + name + "=" + found->second + " must be a whole number above 0");
}

// What every call needs; throws where the attributes contradict each other.
gluon_aa::Sizes parse(const Attributes& attributes) {
  gluon_aa::Sizes sizes{};
  sizes.heads = number(attributes, "num_heads");
  sizes.height = number(attributes, "height");
  sizes.width = number(attributes, "width");
  const std::int64_t keys = number(attributes, "key_channels"), values = number(attributes, "value_channels");
  if (keys % sizes.heads != 0 || values % sizes.heads != 0) {
    throw std::invalid_argument("attention: " + std::to_string(keys) + " key and " + std::to_string(values) +
                                " value channels must both divide by " + std::to_string(sizes.heads) + " heads");
  }
  sizes.key_depth = keys / sizes.heads;
  sizes.value_depth = values / sizes.heads;
  const auto relative = attributes.find("relative");
  sizes.relative = relative != attributes.end() && relative->second == "1";
  return sizes;
}

// MXNet knows no exceptions from a library: they become its own error, with the message.
template <class Work>
MXReturnValue guarded(const Work& work) {
  try {
    work();
    return mxnet::ext::MX_SUCCESS;
  } catch (const std::exception& error) {
    MX_ERROR_MSG << error.what();
    return mxnet::ext::MX_FAIL;
  }
}

MXReturnValue parse_attributes(const Attributes& attributes, int* inputs, int* outputs) {
  return guarded([&] {
    *inputs = parse(attributes).relative ? 3 : 1;
    *outputs = 2;
  });
}

MXReturnValue infer_types(const Attributes&, std::vector<int>* inputs, std::vector<int>* outputs) {
  return guarded([&] {
    for (int& type : *inputs) {
      if (type == -1) type = mxnet::ext::kFloat32;
      if (type != mxnet::ext::kFloat32) {
        throw std::invalid_argument("attention: inputs must be float32, but one has MXNet's type number " +
                                    std::to_string(type));
      }
    }
    for (int& type : *outputs) type = mxnet::ext::kFloat32;
  });
}

typedef std::vector<unsigned int> Shape;

std::string words(const Shape& shape) {
  std::string text;
  for (unsigned int size : shape) text += (text.empty() ? "(" : ", ") + std::to_string(size);
  return text + ")";
}

// Sizes that MXNet does not know yet are 0, or missing altogether: those become what they must be.
void expect(const std::string& name, Shape* found, const Shape& wanted) {
  bool agrees = found->empty() || found->size() == wanted.size();
  for (std::size_t i = 0; agrees && i < found->size(); ++i) agrees = found->at(i) == 0 || found->at(i) == wanted[i];
  if (!agrees) {
    throw std::invalid_argument("attention: " + name + " is " + words(*found) + " and must be " + words(wanted));
  }
  *found = wanted;
}

MXReturnValue infer_shapes(const Attributes& attributes, std::vector<Shape>* inputs, std::vector<Shape>* outputs) {
  return guarded([&] {
    const gluon_aa::Sizes s = parse(attributes);
    const auto height = static_cast<unsigned int>(s.height), width = static_cast<unsigned int>(s.width);
    const unsigned int batch = inputs->at(0).empty() ? 0 : inputs->at(0)[0];
    expect("qkv", &inputs->at(0), {batch, static_cast<unsigned int>(s.channels()), height, width});
    if (s.relative) {
      const auto depth = static_cast<unsigned int>(s.key_depth);
      expect("rel_h", &inputs->at(1), {2 * height - 1, depth});
      expect("rel_w", &inputs->at(2), {2 * width - 1, depth});
    }
    outputs->at(0) = {batch, static_cast<unsigned int>(s.heads * s.value_depth), height, width};
    outputs->at(1) = {batch, static_cast<unsigned int>(s.heads), height * width};
  });
}

void* allocate(const OpResource& resource, std::int64_t bytes) {
  if (bytes > std::numeric_limits<int>::max() - 64) {
    throw std::length_error("attention: needs " + std::to_string(bytes) + " bytes of scratch memory, and MXNet gives a "
                            "library 2 GiB at most: use fewer threads (OMP_NUM_THREADS) or another attention backend");
  }
  const auto address = reinterpret_cast<std::uintptr_t>(resource.alloc_cpu(static_cast<int>(bytes) + 64));
  return reinterpret_cast<void*>((address + 63) / 64 * 64);
}

gluon_aa::Sizes sizes_of(const Attributes& attributes, const MXTensor& qkv) {
  gluon_aa::Sizes sizes = parse(attributes);
  sizes.batch = qkv.shape[0];
  return sizes;
}

MXReturnValue forward(const Attributes& attributes, std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs,
                      const OpResource& resource) {
  return guarded([&] {
    const gluon_aa::Sizes sizes = sizes_of(attributes, inputs->at(0));
    const int threads = omp_get_max_threads();
    float* tables[2] = {};
    for (int i = 0; sizes.relative && i < 2; ++i) tables[i] = inputs->at(1 + i).data<float>();
    gluon_aa::forward(sizes, inputs->at(0).data<float>(), tables[0], tables[1], outputs->at(0).data<float>(),
                      outputs->at(1).data<float>(), allocate(resource, gluon_aa::forward_scratch(sizes, threads)),
                      threads);
  });
}

// inputs: gradients of the two outputs (none reaches log_sum), the inputs, the outputs
MXReturnValue backward(const Attributes& attributes, std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs,
                       const OpResource& resource) {
  return guarded([&] {
    const gluon_aa::Sizes sizes = sizes_of(attributes, inputs->at(2));
    const int threads = omp_get_max_threads();
    float *tables[2] = {}, *d_tables[2] = {};
    for (int i = 0; sizes.relative && i < 2; ++i) {
      tables[i] = inputs->at(3 + i).data<float>();
      d_tables[i] = outputs->at(1 + i).data<float>();
    }
    const std::size_t out = sizes.relative ? 5 : 3;
    gluon_aa::backward(sizes, inputs->at(2).data<float>(), tables[0], tables[1], inputs->at(out).data<float>(),
                       inputs->at(out + 1).data<float>(), inputs->at(0).data<float>(), outputs->at(0).data<float>(),
                       d_tables[0], d_tables[1], allocate(resource, gluon_aa::backward_scratch(sizes, threads)),
                       threads);
  });
}

}  // namespace

REGISTER_OP(gluon_aa_attention)
    .setForward(forward, "cpu")
    .setBackward(backward, "cpu")
    .setParseAttrs(parse_attributes)
    .setInferType(infer_types)
    .setInferShape(infer_shapes);

MXReturnValue initialize(int version) {
  if (version >= 10900) return mxnet::ext::MX_SUCCESS;
  MX_ERROR_MSG << "attention: needs MXNet 1.9 or later, and this is version " << version;
  return mxnet::ext::MX_FAIL;
}
