#!/usr/bin/env bash
# Flink for pipeline.convert on this machine: Beam's job server, and a cluster of a job manager and two task managers.
set -euo pipefail

# Beam's runner and the Flink it is for. Older than the Python package, whose job server speaks the same protocol: the
# newest pair whose jars were all to be had from the Maven repository that the tests ran with (BUILD.md, "Flink").
BEAM=2.62.0
FLINK=1.19
SLF4J=1.7.36               # the version Beam and Flink are built with
DEPENDENCY_PLUGIN=3.8.1    # Maven's, which collects the jars
JAR_PLUGIN=3.4.2           # Maven's, which makes the one that names them all

cd "$(dirname "$0")/.."
JARS=$PWD/.flink/jars-$BEAM-$FLINK
SERVER_JAR=$JARS/job-server.jar
RUN=${FLINK_RUN:-$PWD/.flink/run}
PORT=${FLINK_PORT:-8081}
PYTHON=${PYTHON:-$PWD/.venv/bin/python}
SLOTS=2
START_SECONDS=60
UNREACHABLE=3

usage() {
    cat <<END
usage: tools/flink.sh fetch|start|stop|status

  fetch   get the jars by Maven into .flink/ (150 MB; once)
  start   fetch, start a job manager and two task managers on 127.0.0.1, and print the flags for pipeline.convert
  stop    end them and remove what they left
  status  say which processes run, and the flags

Needs Java 17 or 11 and Maven. From the environment: FLINK_PORT (8081; the next one is used too), FLINK_RUN (.flink/run:
logs, temporary files), PYTHON (.venv/bin/python: what the workers run with).
Exit codes: 0 done, 1 failed, 2 bad usage, 3 Java or Maven is missing or the jars couldn't be downloaded.
END
}

fail() {
    echo "error: $2" >&2
    exit "$1"
}

fetch() {
    if [[ ! -f $SERVER_JAR ]]; then download; fi
    ln -sfn "${JARS##*/}" .flink/jars  # a name without versions, for the command line
}

download() {
    command -v java >/dev/null || fail $UNREACHABLE 'java: not found; install Java 17 (a JRE is enough)'
    command -v mvn >/dev/null || fail $UNREACHABLE 'mvn: not found; install Maven 3'
    echo "fetching Beam $BEAM for Flink $FLINK into ${JARS#"$PWD"/}"
    rm -rf "$JARS.partial"
    mkdir -p "$JARS.partial"
    write_pom >"$JARS.partial/pom.xml"
    local plugins=org.apache.maven.plugins log=$PWD/.flink/maven.log
    if ! timeout 600 mvn --batch-mode --strict-checksums --file "$JARS.partial/pom.xml" \
        "$plugins:maven-dependency-plugin:$DEPENDENCY_PLUGIN:copy-dependencies" -DoutputDirectory=lib \
        "$plugins:maven-jar-plugin:$JAR_PLUGIN:jar" >"$log" 2>&1; then
        rm -rf "$JARS.partial"
        fail $UNREACHABLE "Maven couldn't get the jars: $(grep -m1 '^\[ERROR\]' "$log" | cut -c1-300); see ${log#"$PWD"/}"
    fi
    mv "$JARS.partial" "$JARS"
}

# One jar that names the others and what Flink needs opened in Java 17, to be started with `java -jar` as Beam does it.
write_pom() {
    cat <<END
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId>
  <artifactId>job-server</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.beam</groupId>
      <artifactId>beam-runners-flink-$FLINK</artifactId>
      <version>$BEAM</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>$SLF4J</version>
    </dependency>
  </dependencies>
  <build>
    <directory>.</directory>
    <finalName>job-server</finalName>
    <plugins>
      <plugin>
        <artifactId>maven-jar-plugin</artifactId>
        <configuration>
          <archive>
            <manifest>
              <addClasspath>true</addClasspath>
              <classpathPrefix>lib/</classpathPrefix>
              <mainClass>org.apache.beam.runners.flink.FlinkJobServerDriver</mainClass>
            </manifest>
            <manifestEntries>
              <Add-Opens>$(java_modules opens | xargs)</Add-Opens>
              <Add-Exports>$(java_modules exports | xargs)</Add-Exports>
            </manifestEntries>
          </archive>
        </configuration>
      </plugin>
    </plugins>
  </build>
</project>
END
}

# Flink's own list for Java 17, without what only its SQL needs.
java_modules() {
    case $1 in
        opens) printf 'java.base/%s\n' java.lang java.net java.io java.nio sun.nio.ch java.lang.reflect java.text \
            java.time java.util java.util.concurrent java.util.concurrent.atomic java.util.concurrent.locks ;;
        exports) printf '%s\n' java.base/sun.net.util java.security.jgss/sun.security.krb5 ;;
    esac
}

start() {
    fetch
    [[ -x $PYTHON ]] || fail 1 "$PYTHON: no such Python; run make setup, or give PYTHON=/path/to/python"
    [[ -z $(processes) ]] || fail 1 "already running; tools/flink.sh stop ends it"
    if port_answers; then
        fail 1 "port $PORT is taken; give another one: FLINK_PORT=9081 tools/flink.sh start"
    fi
    rm -rf "$RUN"
    mkdir -p "$RUN/tmp"
    write_config >"$RUN/config.yaml"
    write_worker >"$RUN/worker"
    chmod +x "$RUN/worker"
    flags >"$RUN/flags"
    launch jobmanager 512m org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint
    for number in 1 2; do
        launch "taskmanager-$number" 640m org.apache.flink.runtime.taskexecutor.TaskManagerRunner \
            -D "taskmanager.resource-id=taskmanager-$number"
    done
    await
    status
}

write_config() {
    cat <<END
jobmanager.rpc.address: 127.0.0.1
jobmanager.bind-host: 127.0.0.1
jobmanager.rpc.port: $((PORT + 1))
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: $PORT
taskmanager.host: 127.0.0.1
taskmanager.bind-host: 127.0.0.1
taskmanager.numberOfTaskSlots: $SLOTS
# A task manager that is started without Flink's scripts must be told how its memory is divided.
taskmanager.cpu.cores: $SLOTS
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 64m
taskmanager.memory.task.heap.size: 512m
taskmanager.memory.task.off-heap.size: 0m
taskmanager.memory.managed.size: 256m
taskmanager.memory.network.min: 128m
taskmanager.memory.network.max: 128m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
cluster.evenly-spread-out-slots: true
# Without this a job ends with its first lost task manager; Beam's --number_of_execution_retries doesn't reach Flink.
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 8
restart-strategy.fixed-delay.delay: 2 s
# A lost task manager is noticed after seconds: two messages to it that fail.
heartbeat.interval: 1000
# The cluster has Beam's jars itself, the same files that a job brings along.
classloader.resolve-order: parent-first
io.tmp.dirs: $RUN/tmp
END
}

# What a task manager starts for the Python steps; it ends with its task manager.
write_worker() {
    printf '#!/usr/bin/env bash\ncd %q && exec %q -m pipeline.beam_worker "$@"\n' "$PWD" "$PYTHON"
}

flags() {
    printf -- '--%s\n' runner=FlinkRunner "flink_master=127.0.0.1:$PORT" "flink_job_server_jar=$SERVER_JAR" \
        parallelism=$SLOTS environment_type=PROCESS "environment_option=process_command=$RUN/worker"
}

# launch NAME HEAP CLASS [ARGUMENT...]: a JVM in a process group of its own, which its Python workers belong to as well.
launch() {
    local name=$1 heap=$2 class=$3 module
    local -a options=(-Xmx"$heap" -Djava.io.tmpdir="$RUN/tmp" -Dorg.slf4j.simpleLogger.showDateTime=true
        -Dorg.slf4j.simpleLogger.dateTimeFormat='yyyy-MM-dd HH:mm:ss.SSS')
    shift 3
    for module in $(java_modules opens); do options+=(--add-opens="$module=ALL-UNNAMED"); done
    for module in $(java_modules exports); do options+=(--add-exports="$module=ALL-UNNAMED"); done
    TMPDIR=$RUN/tmp setsid java "${options[@]}" -cp "$SERVER_JAR" "$class" --configDir "$RUN" "$@" \
        >"$RUN/$name.log" 2>&1 </dev/null &
    echo $! >"$RUN/$name.pid"
}

await() {
    local second
    for ((second = 0; second < START_SECONDS; second++)); do
        [[ $(task_managers) == 2 ]] && return
        for file in "$RUN"/*.pid; do
            kill -0 "$(<"$file")" 2>/dev/null && continue
            local log=${file%.pid}.log
            end_processes
            fail 1 "$(basename "$log" .log) ended: $(grep -m1 -E 'Exception|Error' "$log" | cut -c1-300); see $log"
        done
        sleep 1
    done
    end_processes
    fail 1 "no two task managers after $START_SECONDS seconds; see $RUN/*.log"
}

port_answers() {
    curl --silent --max-time 5 --output /dev/null "http://127.0.0.1:$PORT/"
}

# How many task managers the job manager knows.
task_managers() {
    curl --silent --max-time 5 "http://127.0.0.1:$PORT/overview" | grep -o '"taskmanagers":[0-9]*' | cut -d: -f2 || true
}

# The processes of the groups started here. A number can have gone to another program since; the command tells them.
processes() {
    local file
    for file in "$RUN"/*.pid; do
        [[ -f $file ]] && { pgrep -g "$(<"$file")" -f -- "--configDir $RUN( |\$)|pipeline.beam_worker" || true; }
    done
    return 0
}

status() {
    local file name
    [[ -n $(processes) ]] || { echo 'not running'; return; }
    for file in "$RUN"/*.pid; do
        name=$(basename "$file" .pid)
        if kill -0 "$(<"$file")" 2>/dev/null; then echo "$name: process $(<"$file")"; else echo "$name: ended"; fi
    done
    PORT=$(sed -n 's/^rest.port: //p' "$RUN/config.yaml")  # as it was started, whatever the environment says now
    echo "task managers that the job manager knows: $(task_managers); http://127.0.0.1:$PORT/overview"
    echo "flags (or --flagfile=$RUN/flags):"
    sed 's/^/  /' "$RUN/flags"
}

stop() {
    end_processes
    rm -rf "$RUN"
}

end_processes() {
    local signal attempt
    for signal in TERM KILL; do
        for ((attempt = 0; attempt < 50; attempt++)); do
            [[ -n $(processes) ]] || break 2
            # shellcheck disable=SC2046  # one word a process
            ((attempt)) || kill -$signal $(processes) 2>/dev/null || true
            sleep 0.2
        done
    done
    [[ -z $(processes) ]] || fail 1 "still running: $(processes | xargs)"
}

[[ $# == 1 ]] || { usage >&2; exit 2; }
case $1 in
    fetch | start | stop | status) "$1" ;;
    -h | --help) usage ;;
    *) usage >&2; exit 2 ;;
esac
