// architecture: 75
// expect: switchyard: backend::cuda needs compute capability 8.0 or newer. Set CMAKE_CUDA_ARCHITECTURES (nvcc: -arch) to 80 or more.
#include <switchyard/switchyard.cuh>
