# Tests that the compiler accepts or refuses one file. CTest runs them, so that a build does not stop at them.
#
#   switchyard_compile_test(<name> <source> [FAILS] [LABEL <label>])
#
# A .cu file is compiled by nvcc, for the architecture of its line `// architecture: <number>` (else 80).
#
# With FAILS the test passes when the compiler refuses the file and its output has the sentence of each line
# `// expect: <sentence>` of the file. Without it, when the compiler accepts the file.
if(CMAKE_SCRIPT_MODE_FILE STREQUAL CMAKE_CURRENT_LIST_FILE)
  execute_process(COMMAND ${COMPILE} ${SOURCE} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT FAILS)
    if(NOT result EQUAL 0)
      message(FATAL_ERROR "${SOURCE} does not compile:\n${output}")
    endif()
    return()
  endif()

  file(STRINGS ${SOURCE} expectations REGEX "^// expect: ")
  if(NOT expectations)
    message(FATAL_ERROR "${SOURCE} has no line '// expect: <sentence>'")
  endif()
  if(result EQUAL 0)
    message(FATAL_ERROR "${SOURCE} compiles, and must not")
  endif()
  foreach(expectation IN LISTS expectations)
    string(REPLACE "// expect: " "" sentence "${expectation}")
    string(FIND "${output}" "${sentence}" position)
    if(position EQUAL -1)
      message(FATAL_ERROR "${SOURCE}: the compiler does not say\n  ${sentence}\nIt says\n${output}")
    endif()
    message("refused with: ${sentence}")
  endforeach()
  return()
endif()

set(switchyard_compile_test_script ${CMAKE_CURRENT_LIST_FILE})

function(switchyard_compile_test name source)
  cmake_parse_arguments(PARSE_ARGV 2 arg "FAILS" "LABEL" "")
  if(source MATCHES "[.]cu$")
    file(STRINGS ${source} architecture REGEX "^// architecture: ")
    string(REPLACE "// architecture: " "" architecture "${architecture}")
    if(NOT architecture)
      set(architecture 80)
    endif()
    set(compile ${CMAKE_CUDA_COMPILER} -std=c++20 -ptx -o /dev/null -arch=compute_${architecture}
      ${switchyard_cuda_warning_options} -I${PROJECT_SOURCE_DIR}/include)
    if(SWITCHYARD_WARNINGS_AS_ERRORS)
      list(APPEND compile -Werror all-warnings)
    endif()
  else()
    separate_arguments(user_flags UNIX_COMMAND "${CMAKE_CXX_FLAGS}")
    set(compile
      ${CMAKE_CXX_COMPILER} ${CMAKE_CXX20_STANDARD_COMPILE_OPTION} ${user_flags} ${switchyard_warning_options}
      -fsyntax-only -I${PROJECT_SOURCE_DIR}/include)
    if(SWITCHYARD_WARNINGS_AS_ERRORS)
      list(APPEND compile -Werror)
    endif()
  endif()
  add_test(NAME ${name} COMMAND ${CMAKE_COMMAND}
    "-DCOMPILE=${compile}" -DSOURCE=${source} -DFAILS=${arg_FAILS} -P ${switchyard_compile_test_script})
  set_tests_properties(${name} PROPERTIES LABELS ${arg_LABEL})
endfunction()
