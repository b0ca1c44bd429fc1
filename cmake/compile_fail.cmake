# Tests that the compiler accepts or refuses one file. CTest runs them, so that a build does not stop at them.
#
#   switchyard_compile_test(<name> <source> [FAILS] [LABEL <label>] [READ_ONCE])
#
# A line `// options: <options>` adds to how the file is compiled. With READ_ONCE gcc reads the library's headers from a precompiled one. A .cu file is compiled by nvcc, for the architecture of its line `// architecture: <number>` (else 80).
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
  cmake_parse_arguments(PARSE_ARGV 2 arg "FAILS;READ_ONCE" "LABEL" "")
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
    switchyard_compile_command(compile)
    list(APPEND compile -fsyntax-only)
    file(STRINGS ${source} options REGEX "^// options: ")
    if(options)
      string(REPLACE "// options: " "" options "${options}")
      separate_arguments(options UNIX_COMMAND "${options}")
      list(APPEND compile ${options})
    elseif(arg_READ_ONCE AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      switchyard_read_once(header)
      list(APPEND compile -include ${header})
    endif()
  endif()
  add_test(NAME ${name} COMMAND ${CMAKE_COMMAND}
    "-DCOMPILE=${compile}" -DSOURCE=${source} -DFAILS=${arg_FAILS} -P ${switchyard_compile_test_script})
  set_tests_properties(${name} PROPERTIES LABELS ${arg_LABEL})
endfunction()

# How a C++ file is compiled.
function(switchyard_compile_command variable)
  separate_arguments(user_flags UNIX_COMMAND "${CMAKE_CXX_FLAGS}")
  set(compile
    ${CMAKE_CXX_COMPILER} ${CMAKE_CXX20_STANDARD_COMPILE_OPTION} ${user_flags} ${switchyard_warning_options}
    -I${PROJECT_SOURCE_DIR}/include)
  if(SWITCHYARD_WARNINGS_AS_ERRORS)
    list(APPEND compile -Werror)
  endif()
  set(${variable} ${compile} PARENT_SCOPE)
endfunction()

# A header that includes the library and is precompiled by the build. Without that it is a header like any other.
function(switchyard_read_once variable)
  set(header ${PROJECT_BINARY_DIR}/read_once/switchyard.hpp)
  set(${variable} ${header} PARENT_SCOPE)
  if(TARGET switchyard_read_once)
    return()
  endif()
  file(CONFIGURE OUTPUT ${header} CONTENT "#include <switchyard/switchyard.hpp>\n" @ONLY)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/*.hpp ${PROJECT_SOURCE_DIR}/include/*.inl)
  switchyard_compile_command(compile)
  add_custom_command(OUTPUT ${header}.gch
    COMMAND ${compile} -x c++-header ${header} -o ${header}.gch
    DEPENDS ${headers} COMMENT "Precompiling the library's headers for the compile tests" VERBATIM)
  add_custom_target(switchyard_read_once ALL DEPENDS ${header}.gch)
endfunction()
