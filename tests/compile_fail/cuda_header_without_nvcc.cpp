// options: -std=c++20
// expect: switchyard: switchyard.cuh has code for GPUs, which nvcc compiles.
#include <switchyard/switchyard.cuh>
