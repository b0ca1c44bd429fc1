# What the GPU backends cost the compiler, for one architecture: prints the processor time of an empty .cu file, of one
# that includes switchyard.cuh, and of those that run a layer, or two that differ in their shape alone and so share what
# does not depend on it, and fails beyond the limits.
#
#   cmake -DNVCC=<compiler> -DINCLUDE=<folder> -DSOURCE=<kernels.cu> -DFOLDER=<to write to> -P compile_cost.cmake
cmake_minimum_required(VERSION 3.25)

set(most_include_ms 4000)  # over an empty file
set(most_layer_ms 20000)
set(most_second_layer_ms 3000)  # over one of the two
set(most_hopper_layer_ms 30000)

# compile(<variable> <argument>...): milliseconds, user and system, which other programs on the machine hardly change.
function(compile variable)
  execute_process(
    COMMAND sh -c "\"$@\" && times" sh ${NVCC} -std=c++20 -I${INCLUDE} -c -o ${FOLDER}/cost.o ${ARGN}
    OUTPUT_VARIABLE output RESULT_VARIABLE result)
  # Two lines, of the shell and of its children: 0m0.01s 0m0.02s
  if(NOT result EQUAL 0 OR NOT output MATCHES "\n([0-9]+)m([0-9]+)[.]([0-9]+)s ([0-9]+)m([0-9]+)[.]([0-9]+)s\n$")
    message(FATAL_ERROR "${ARGN}: expected to compile and the shell's times, got '${output}' (${result})")
  endif()
  set(milliseconds 0)
  foreach(first 1 4)
    math(EXPR second "${first} + 1")
    math(EXPR third "${first} + 2")
    string(SUBSTRING "${CMAKE_MATCH_${third}}000" 0 3 fraction)
    # Leading zeros do not make them octal: CMake reads all digits as decimal.
    math(EXPR milliseconds "${milliseconds} + ${CMAKE_MATCH_${first}} * 60000 + ${CMAKE_MATCH_${second}} * 1000 + ${fraction}")
  endforeach()
  set(${variable} ${milliseconds} PARENT_SCOPE)
endfunction()

file(MAKE_DIRECTORY ${FOLDER})
file(WRITE ${FOLDER}/empty.cu "")
file(WRITE ${FOLDER}/include.cu "#include <switchyard/switchyard.cuh>\n")
file(WRITE ${FOLDER}/shapes.cu "#include <switchyard/switchyard.cuh>
using namespace switchyard;
template <shape Dims>
using shaped = layer<Dims, router::softmax_top_k, capacity::dropless, expert::gated_mlp<silu>, backend::cuda, bfloat16>;
using first = shaped<shape{.hidden = 2048, .intermediate = 1024, .experts = 64, .top_k = 8}>;
using second = shaped<shape{.hidden = 1024, .intermediate = 512, .experts = 32, .top_k = 4}>;
void run(first::args const& args) { first::forward(args); }
#if defined(BOTH)
void run(second::args const& args) { second::forward(args); }
#endif
")
compile(empty -arch=sm_80 ${FOLDER}/empty.cu)
compile(include -arch=sm_80 ${FOLDER}/include.cu)
compile(layer -arch=sm_80 -DPRESET=mixtral_8x7b -DELEMENT=bfloat16 -DBACKEND=cuda ${SOURCE})
compile(hopper_layer -gencode arch=compute_90a,code=sm_90a
  -DPRESET=gpt_oss_20b -DELEMENT=bfloat16 -DBACKEND=hopper ${SOURCE})
compile(one_shape -arch=compute_80 ${FOLDER}/shapes.cu)
compile(two_shapes -arch=compute_80 -DBOTH ${FOLDER}/shapes.cu)
math(EXPR include_more "${include} - ${empty}")
math(EXPR second_layer "${two_shapes} - ${one_shape}")
message("an empty file: ${empty} ms
switchyard.cuh: ${include_more} ms more, at most ${most_include_ms}
one layer: ${layer} ms, at most ${most_layer_ms}
a second layer of another shape: ${second_layer} ms more, at most ${most_second_layer_ms}
one layer on Hopper: ${hopper_layer} ms, at most ${most_hopper_layer_ms}")
if(include_more GREATER most_include_ms OR layer GREATER most_layer_ms OR hopper_layer GREATER most_hopper_layer_ms
   OR second_layer GREATER most_second_layer_ms)
  message(FATAL_ERROR "too slow to compile")
endif()
