# Where tests, benches and examples get Catch2, Google Benchmark and nlohmann-json. The library needs none of them.
#
#   switchyard_dependency(<package> TARGET <target> DEBIAN_PACKAGE <name> URL <archive> SHA256 <hash>)
#
# makes <target> known in the whole project. It tries, in the order of SWITCHYARD_DEPENDENCIES:
#   system        an installed copy, by find_package
#   distribution  the package of a Debian-like system, downloaded and unpacked into the dependency folder; needs no root
#   archive       the pinned archive of the project itself, checked by its hash and built here
set(SWITCHYARD_DEPENDENCIES "system;distribution;archive" CACHE STRING
  "Where test, bench and example dependencies may come from, in this order")

set(SWITCHYARD_DEPENDENCY_FOLDER ${PROJECT_BINARY_DIR} CACHE PATH
  "Where they are downloaded to; build folders may share it")

function(switchyard_dependency package)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TARGET;DEBIAN_PACKAGE;URL;SHA256" "")
  foreach(source IN LISTS SWITCHYARD_DEPENDENCIES)
    if(TARGET ${arg_TARGET})
      return()
    endif()
    if(source STREQUAL "system")
      find_package(${package} QUIET GLOBAL)
    elseif(source STREQUAL "distribution")
      switchyard_unpack_debian_package(${arg_DEBIAN_PACKAGE} root)
      find_package(${package} QUIET GLOBAL PATHS ${root}/usr NO_DEFAULT_PATH)
    elseif(source STREQUAL "archive")
      switchyard_fetch_archive(${package} ${arg_URL} ${arg_SHA256})
    else()
      message(FATAL_ERROR
        "switchyard: SWITCHYARD_DEPENDENCIES: expected system, distribution or archive, got ${source}")
    endif()
  endforeach()
  if(NOT TARGET ${arg_TARGET})
    message(FATAL_ERROR "switchyard: ${package} is in none of: ${SWITCHYARD_DEPENDENCIES}. Install it, or switch "
      "off what needs it (SWITCHYARD_TESTS, SWITCHYARD_BENCH, SWITCHYARD_EXAMPLES).")
  endif()
endfunction()

# Downloads a package and the packages of the same source that it needs, and unpacks them below the folder that it
# returns in `root_variable`. Does nothing more than that on a system without apt-get, or without a network.
function(switchyard_unpack_debian_package package root_variable)
  set(folder ${SWITCHYARD_DEPENDENCY_FOLDER}/distribution)
  set(root ${folder}/${package})
  set(${root_variable} ${root} PARENT_SCOPE)
  find_program(APT_GET apt-get)
  find_program(DPKG_DEB dpkg-deb)
  mark_as_advanced(APT_GET DPKG_DEB)
  if(EXISTS ${root} OR NOT APT_GET OR NOT DPKG_DEB)
    return()
  endif()

  # The system's lists may be empty or old, and only root may renew them: lists, cache and state of our own.
  # The hooks that we clear are for the system's cache.
  file(MAKE_DIRECTORY ${folder}/lists/partial ${folder}/cache/archives/partial ${folder}/state)
  file(WRITE ${folder}/apt.conf "\
Dir::State \"${folder}/state\";
Dir::State::Lists \"${folder}/lists\";
Dir::Cache \"${folder}/cache\";
APT::Sandbox::User \"root\";
Acquire::Languages \"none\";
Acquire::Retries \"2\";
Acquire::http::Timeout \"20\";
Acquire::https::Timeout \"20\";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
")
  set(apt_get ${APT_GET} --quiet --config-file ${folder}/apt.conf)
  set(quietly WORKING_DIRECTORY ${folder} INPUT_FILE /dev/null OUTPUT_QUIET TIMEOUT 300)
  get_property(lists_are_new GLOBAL PROPERTY switchyard_package_lists_are_new)
  if(NOT lists_are_new)
    message(STATUS "switchyard: fetching the distribution's package lists into the dependency folder")
    # No check: a broken third-party source fails the update, and what we want may still be there.
    execute_process(COMMAND ${apt_get} update ${quietly} ERROR_QUIET)
    set_property(GLOBAL PROPERTY switchyard_package_lists_are_new TRUE)
  endif()

  message(STATUS "switchyard: downloading the distribution's package ${package} into the dependency folder")
  set(wanted ${package})
  while(wanted)
    list(POP_FRONT wanted name)
    execute_process(COMMAND ${apt_get} download ${name} ${quietly} ERROR_VARIABLE error RESULT_VARIABLE result)
    file(GLOB deb ${folder}/${name}_*.deb)
    if(NOT result EQUAL 0 OR NOT deb)
      message(STATUS "switchyard: the distribution's package ${name} could not be downloaded\n${error}")
      return()
    endif()
    execute_process(COMMAND ${DPKG_DEB} --extract ${deb} ${root}.part COMMAND_ERROR_IS_FATAL ANY)
    # A -dev package names the shared library of its own source with the exact version.
    execute_process(COMMAND ${DPKG_DEB} --field ${deb} Depends OUTPUT_VARIABLE depends)
    string(REGEX MATCHALL "[a-z0-9.+-]+ \\(= " same_source "${depends}")
    list(TRANSFORM same_source REPLACE " .*" "")
    list(APPEND wanted ${same_source})
  endwhile()
  file(RENAME ${root}.part ${root})
endfunction()

# Downloads an archive of upstream, checks it and adds its targets. Not by FetchContent, which answers a missing
# network with minutes of retries and no clear sentence, and installs the fetched library together with ours.
function(switchyard_fetch_archive package url sha256)
  set(folder ${SWITCHYARD_DEPENDENCY_FOLDER}/archives/${package})
  if(NOT EXISTS ${folder}/source)
    message(STATUS "switchyard: downloading ${url}")
    file(DOWNLOAD ${url} ${folder}/archive INACTIVITY_TIMEOUT 60 STATUS status)
    list(POP_FRONT status code reason)
    if(NOT code EQUAL 0)
      message(STATUS "switchyard: ${url} could not be downloaded: ${reason}")
      return()
    endif()
    file(SHA256 ${folder}/archive hash)
    if(NOT hash STREQUAL sha256)
      message(FATAL_ERROR "switchyard: ${url}: expected SHA256 ${sha256}, got ${hash}")
    endif()
    file(ARCHIVE_EXTRACT INPUT ${folder}/archive DESTINATION ${folder}/unpacked)
    file(GLOB top_folder ${folder}/unpacked/*)
    file(RENAME ${top_folder} ${folder}/source)
  endif()

  # The library only: not its tests, nor its warnings.
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_WERROR OFF)
  add_subdirectory(${folder}/source ${PROJECT_BINARY_DIR}/archives/${package} EXCLUDE_FROM_ALL SYSTEM)
endfunction()

# One function for each package: what needs it calls it, so that a build without benches needs no Google Benchmark.
function(switchyard_catch2)
  switchyard_dependency(Catch2
    TARGET Catch2::Catch2
    DEBIAN_PACKAGE catch2
    URL https://github.com/catchorg/Catch2/archive/refs/tags/v3.8.1.tar.gz
    SHA256 18b3f70ac80fccc340d8c6ff0f339b2ae64944782f8d2fca2bd705cf47cadb79)
endfunction()

function(switchyard_google_benchmark)
  switchyard_dependency(benchmark
    TARGET benchmark::benchmark
    DEBIAN_PACKAGE libbenchmark-dev
    URL https://github.com/google/benchmark/archive/refs/tags/v1.8.3.tar.gz
    SHA256 6bc180a57d23d4d9515519f92b0c83d61b05b5bab188961f36ac7b06b0d9e9ce)
endfunction()

function(switchyard_json)
  switchyard_dependency(nlohmann_json
    TARGET nlohmann_json::nlohmann_json
    DEBIAN_PACKAGE nlohmann-json3-dev
    URL https://github.com/nlohmann/json/releases/download/v3.12.0/json.tar.xz
    SHA256 42f6e95cad6ec532fd372391373363b62a14af6d771056dbfc86160e6dfff7aa)
endfunction()

# LAPACK, for programs and tests that decompose matrices: one that is installed, never one that is fetched. Where there is none,
# SWITCHYARD_LAPACK is off and they do without, and say so.
function(switchyard_lapack)
  set(found OFF)
  if(NOT CMAKE_CROSSCOMPILING)  # what is found then is the host's
    find_package(LAPACK QUIET)
    if(TARGET LAPACK::LAPACK)
      set(found ON)
    endif()
  endif()
  if(NOT found)
    message(STATUS "switchyard: no LAPACK here (liblapack-dev or libopenblas-dev), programs and tests do without low rank")
  endif()
  set(SWITCHYARD_LAPACK ${found} PARENT_SCOPE)
endfunction()
