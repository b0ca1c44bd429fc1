# What the library costs the compilers: prints the processor time of empty files, of those that include the library, of those
# that run a layer, and what a second layer costs that differs in its sizes alone; fails beyond the limits.
#
#   cmake -DNVCC=<compiler> -DCXX=<compiler> -DINCLUDE=<folder> -DFOLDER=<to write to> -P compile_cost.cmake
cmake_minimum_required(VERSION 3.25)

set(most_include_ms 6000)  # over an empty file; 1.5 to 4.6 s on the machines that were tried
set(most_layer_ms 15000)
# On a quiet machine half of this: times of compilers differ from run to run by a second.
set(most_second_layer_ms 2000)
set(most_second_gpu_layer_ms 4000)

# compile(<variable> <argument>...): milliseconds, user and system, which other programs on the machine hardly change.
function(compile variable)
  execute_process(
    COMMAND sh -c "\"$@\" && times" sh ${compiler} -std=c++20 -I${INCLUDE} -c -o ${FOLDER}/cost.o ${ARGN}
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

# compile_layers(<variable> <count> <header> <backend> <argument>...): a file with so many layers of different sizes.
function(compile_layers variable count header backend source)
  set(text "#include <switchyard/${header}>\nusing namespace switchyard;\n")
  set(shapes "2048, 1024, 64, 8" "1024, 512, 32, 4")
  foreach(index RANGE 1 ${count})
    math(EXPR place "${index} - 1")
    list(GET shapes ${place} shape)
    string(APPEND text "using layer_${index} = layer<shape{${shape}}, router::softmax_top_k, capacity::dropless, "
      "expert::gated_mlp<silu>, backend::${backend}, bfloat16>;\n"
      "void run(layer_${index}::args const& args) { layer_${index}::forward(args); }\n")
  endforeach()
  file(WRITE ${FOLDER}/${source} "${text}")
  compile(milliseconds ${ARGN} ${FOLDER}/${source})
  set(${variable} ${milliseconds} PARENT_SCOPE)
endfunction()

file(MAKE_DIRECTORY ${FOLDER})
set(compiler ${CXX} -O2 -DSWITCHYARD_EXTERN_KERNELS)  # a second layer shares the kernels, wherever they are compiled
file(WRITE ${FOLDER}/include.cpp "#include <switchyard/switchyard.hpp>\n")
compile(cpu_include ${FOLDER}/include.cpp)
compile_layers(cpu_one 1 switchyard.hpp cpu one.cpp)
compile_layers(cpu_two 2 switchyard.hpp cpu two.cpp)
math(EXPR cpu_second "${cpu_two} - ${cpu_one}")
message("switchyard.hpp: ${cpu_include} ms
with one layer, its kernels compiled elsewhere: ${cpu_one} ms
a second layer of other sizes: ${cpu_second} ms more, at most ${most_second_layer_ms}")

set(compiler ${NVCC})
file(WRITE ${FOLDER}/empty.cu "")
file(WRITE ${FOLDER}/include.cu "#include <switchyard/switchyard.cuh>\n")
compile(empty -arch=sm_80 ${FOLDER}/empty.cu)
compile(include -arch=sm_80 ${FOLDER}/include.cu)
compile_layers(layer 1 switchyard.cuh cuda one.cu -arch=compute_80)
compile_layers(gpu_two 2 switchyard.cuh cuda two.cu -arch=compute_80)
math(EXPR second "${gpu_two} - ${layer}")
math(EXPR include_more "${include} - ${empty}")
message("an empty file: ${empty} ms
switchyard.cuh: ${include_more} ms more, at most ${most_include_ms}
one layer, as PTX: ${layer} ms, at most ${most_layer_ms}
a second layer of other sizes: ${second} ms more, at most ${most_second_gpu_layer_ms}")
if(include_more GREATER most_include_ms OR layer GREATER most_layer_ms OR
  second GREATER most_second_gpu_layer_ms OR cpu_second GREATER most_second_layer_ms)
  message(FATAL_ERROR "too slow to compile")
endif()
