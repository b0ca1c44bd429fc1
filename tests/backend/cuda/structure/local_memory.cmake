# Compiles the kernels of many layers for one architecture, each kernel once, and fails where one spills registers or keeps
# anything else in local memory, or where products of Hopper wait for each other.
#
#   cmake -DNVCC=<compiler> -DINCLUDE=<folder> "-DLAYERS=<preset>:<element>:<backend>[:<format of its matrices>];..."
#     -DARCHITECTURE=<80, 90a, ...> -DFOLDER=<to write to> -P local_memory.cmake
cmake_minimum_required(VERSION 3.25)

set(text [[
#include <switchyard/expert/stored_as.hpp>
#include <switchyard/presets.hpp>
#include <switchyard/quantised/scaled.hpp>
#include <switchyard/switchyard.cuh>
using namespace switchyard;
template <class, class>
struct stored;
template <shape D, class R, class C, class E, class B, class T, class F>
struct stored<layer<D, R, C, E, B, T>, F> {
  using type = layer<D, R, C, expert::stored_as<E, F>, B, T>;
};
]])
foreach(layer IN LISTS LAYERS)
  string(REPLACE ":" ";" names "${layer}")
  list(GET names 0 preset)
  list(GET names 1 element)
  list(GET names 2 backend)
  set(type "presets::${preset}<${element}, backend::${backend}>")
  list(LENGTH names count)
  if(count EQUAL 4)
    list(GET names 3 format)
    set(type "stored<${type}, quantised::${format}>::type")
  endif()
  string(APPEND text "void run(${type}::args const& args) { ${type}::forward(args); }\n")
endforeach()
file(MAKE_DIRECTORY ${FOLDER})
file(WRITE ${FOLDER}/sm_${ARCHITECTURE}.cu "${text}")
execute_process(
  COMMAND ${NVCC} -std=c++20 -I${INCLUDE} -cubin -arch=sm_${ARCHITECTURE} -Xptxas -v ${FOLDER}/sm_${ARCHITECTURE}.cu
    -o ${FOLDER}/sm_${ARCHITECTURE}.cubin
  RESULT_VARIABLE result OUTPUT_VARIABLE said ERROR_VARIABLE said)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${LAYERS} do not compile:\n${said}")
endif()

set(bad "")
if(said MATCHES "serialized[^\n]*|setmaxnreg[^\n]*ignored")
  string(APPEND bad "\n${CMAKE_MATCH_0}")
endif()
string(REPLACE "\n" ";" lines "${said}")
set(count 0)
foreach(line IN LISTS lines)
  if(line MATCHES "Compiling entry function '([^']*)'")
    set(kernel ${CMAKE_MATCH_1})
    math(EXPR count "${count} + 1")
  elseif(line MATCHES "([0-9]+) bytes stack frame, ([0-9]+) bytes spill stores, ([0-9]+) bytes spill loads")
    if(NOT "${CMAKE_MATCH_1} ${CMAKE_MATCH_2} ${CMAKE_MATCH_3}" STREQUAL "0 0 0")
      string(APPEND bad "\n${kernel}: ${line}")
    endif()
  endif()
endforeach()
list(LENGTH LAYERS layers)
message("${count} kernels of ${layers} layers for sm_${ARCHITECTURE}")
if(count LESS layers)
  message(FATAL_ERROR "the compiler tells of too few kernels:\n${said}")
endif()
if(bad)
  message(FATAL_ERROR "kernels that use local memory, or whose products wait:${bad}")
endif()
