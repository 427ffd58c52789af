"""The command line in Japanese. The keys are the English texts of the code."""

from typing import Final

# What the command line prints, and its help.
TEXTS: Final = {
    # statuses and states
    "queued": "待機中",
    "processing": "実行中",
    "completed": "完了",
    "failed": "失敗",
    "cancelled": "キャンセル",
    "waiting": "待機中",
    "running": "実行中",
    "done": "完了",
    "stalled": "応答なし",
    "stalled for {time}": "応答なし {time}",
    "slow": "遅い",
    "slower than usual": "いつもより遅い",
    # times and numbers
    ", ": "、",
    "{n} s": "{n} 秒",
    "{n} min": "{n} 分",
    "{n} h": "{n} 時間",
    "{m} min {s} s": "{m} 分 {s} 秒",
    "{h} h {m} min": "{h} 時間 {m} 分",
    "less than {n} s": "{n} 秒未満",
    "{time} left": "残り {time}",
    "about {time} left": "残り約 {time}",
    "up to {time}": "最大 {time}",
    "up to {time} left": "残り最大 {time}",
    "{time} elapsed": "経過 {time}",
    "in {time}": "所要時間 {time}",
    "{n} page | {n} pages": "{n} ページ",
    "as {n} earlier run took | as {n} earlier runs took": "過去 {n} 回の実行から",
    "as earlier runs took": "過去の実行から",
    "at its speed": "これまでの速度から",
    "as the program says": "プログラムの報告による",
    "number {n} in the queue": "順番待ちの {n} 番目",
    "number {n} in the queue, may start at {time}": "順番待ちの {n} 番目、開始予定 {time}",
    "… and {n} more": "… ほか {n} 件",
    # notices
    "waiting for jobs": "ジョブを待っています",
    "connection lost; reconnecting": "接続が切れました。再接続しています",
    "connection lost: {why}; reconnecting": "接続が切れました（{why}）。再接続しています",
    "reconnected": "再接続しました",
    "the daemon is stopping": "デーモンが停止します",
    "the daemon cannot read its database at the moment": "デーモンは現在、データベースを読み取れません",
    "this program was too slow": "このプログラムの受信が遅すぎました",
    "the daemon did not hear from this program": "このプログラムからの応答がデーモンに届きませんでした",
    "the daemon has recovered": "デーモンが復旧しました",
    "{reason}, within {n} s": "{reason}（{n} 秒以内）",
    "{reason}; the command continues": "{reason}（コマンドは続行します）",
    "job {id} was deleted": "ジョブ {id} は削除されました",
    "the job was deleted": "ジョブは削除されました",
    "retried as job {id}": "ジョブ {id} として再試行しました",
    "Error: {message}": "エラー: {message}",
    "{url} requires a key: {hint}": "{url} にはキーが必要です: {hint}",
    "the key for {url} has expired or was revoked: {hint}": "{url} のキーは期限切れか、取り消されています: {hint}",
    "set PROGRESSD_KEY or --key-file (progressd keys add NAME on the daemon's machine makes a key)": (
        "PROGRESSD_KEY または --key-file で指定してください"
        "（キーは、デーモンのマシンで progressd keys add NAME を実行すると作成できます）"
    ),
    "use another key with PROGRESSD_KEY or --key-file": (
        "PROGRESSD_KEY または --key-file で別のキーを指定してください"
    ),
    # tables
    "JOB": "ジョブ",
    "STATUS": "状態",
    "DONE": "進捗",
    "CREATED": "作成",
    "NAME": "名前",
    "LEFT": "残り",
    "RATE": "速度",
    "STEP": "工程",
    "HOST": "ホスト",
    "FINDS": "取得する値",
    "ADDS": "追加する引数",
    "FOR": "対象",
    "(needs a terminal)": "（ターミナルが必要）",
    "percent": "割合",
    "count": "件数",
    "rate": "速度",
    "time left": "残り時間",
    "no jobs match": "該当するジョブはありません",
    "no jobs yet (submit a file with progressd submit FILE)": (
        "ジョブはまだありません（progressd submit FILE でファイルを送信できます）"
    ),
    # the programs with a preset
    "CMake tests": "CMake のテスト",
    "ISO images": "ISO イメージ",
    "JSON lines of restic, borg, rclone, docker and pv": "restic、borg、rclone、docker、pv の JSON の行",
    "PostgreSQL backups": "PostgreSQL のバックアップ",
    "Python package installation": "Python パッケージのインストール",
    "Python tests": "Python のテスト",
    "Rust builds": "Rust のビルド",
    "SquashFS images": "SquashFS イメージ",
    "archives": "アーカイブ",
    "audio and video conversion": "音声と動画の変換",
    "audio conversion": "音声の変換",
    "backups": "バックアップ",
    "builds": "ビルド",
    "builds and tests": "ビルドとテスト",
    "builds; CMake's percentage, if CMake wrote the makefile": "ビルド。CMake が作った makefile なら、その割合",
    "clone, fetch, push, gc and others": "clone、fetch、push、gc など",
    "compression": "圧縮",
    "container images": "コンテナイメージ",
    "container images: pull, push, build": "コンテナイメージの pull、push、build",
    "copies over SSH": "SSH でのコピー",
    "copies to and from cloud storage": "クラウドストレージとのコピー",
    "copying of devices and files": "デバイスとファイルのコピー",
    "creation of Matroska files": "Matroska ファイルの作成",
    "creation of ext file systems": "ext ファイルシステムの作成",
    "curl --parallel, with one percentage for all transfers": "curl --parallel（全転送で 1 つの割合）",
    "data recovery from damaged disks": "壊れたディスクからのデータの復旧",
    "data through a pipe": "パイプを通るデータ",
    "deletion of files by overwriting; -v shows its passes": "上書きによるファイルの消去（-v で何回目かを表示）",
    "directory copies": "ディレクトリのコピー",
    "disk images": "ディスクイメージ",
    "downloads": "ダウンロード",
    "encryption and signatures": "暗号化と署名",
    "ext file system checks": "ext ファイルシステムの検査",
    "file transfers": "ファイルの転送",
    "package installation": "パッケージのインストール",
    "partition images": "パーティションのイメージ",
    "programs that use alive-progress; with --as alive-progress": (
        "alive-progress を使うプログラム（--as alive-progress で指定）"
    ),
    "programs that use rich.progress; with --as rich": "rich.progress を使うプログラム（--as rich で指定）",
    "rsync with a percentage for each file": "ファイルごとの割合を表示する rsync",
    "searches for bad blocks": "不良ブロックの検査",
    "text recognition in PDF files": "PDF の文字認識",
    "text recognition in images": "画像の文字認識",
    "video conversion": "動画の変換",
    "video downloads": "動画のダウンロード",
    "zfs send and receive": "zfs の send と receive",
    # progressd show
    "Job": "ジョブ",
    "Kind": "種類",
    "Pipeline": "パイプライン",
    "File": "ファイル",
    "Status": "状態",
    "Progress": "進捗",
    "Step": "工程",
    "Created": "作成",
    "Started": "開始",
    "Completed": "完了",
    "Ended": "終了",
    "Lease": "応答の期限",
    "Batch": "バッチ",
    "Labels": "ラベル",
    "Options": "オプション",
    "Result": "結果",
    "Pages": "ページ数",
    "Error": "エラー",
    "Tasks": "タスク",
    "Steps": "工程",
    "Log": "ログ",
    "attempt {n}": "{n} 回目の試行",
    "{id}, priority {priority}": "{id}、優先度 {priority}",
    ", after {time}": "（{time}後）",
    ", attempt {n}, {time} after the job was created": "（{n} 回目の試行、作成から {time}後）",
    " ({n} steps)": "（{n} 工程）",
    " (earlier attempt)": "（以前の試行）",
    # the list on the whole terminal
    "Running": "実行中",
    "Waiting": "待機中",
    "Needs a look": "要確認",
    "Look": "要確認",
    "Finished": "終了",
    "All": "すべて",
    "no job is running": "実行中のジョブはありません",
    "no job is waiting": "待機中のジョブはありません",
    "no job needs a look": "確認が必要なジョブはありません",
    "no job has finished": "終了したジョブはありません",
    "no job matches": "該当するジョブはありません",
    "status {names}": "状態 {names}",
    "kind {name}": "種類 {name}",
    "host {name}": "ホスト {name}",
    " No connection since {time}. What you see is from then.": (
        " {time} から接続が切れています。表示はその時点のものです。"
    ),
    " No connection since {time}.": " {time} から接続が切れています。",
    "Cancel {name}? (y/n)": "{name} をキャンセルしますか？ (y/n)",
    "{name} has already ended": "{name} はすでに終了しています",
    "only failed and cancelled jobs can be retried": "再試行できるのは、失敗またはキャンセルしたジョブだけです",
    "quit": "終了",
    "keys": "キー操作",
    "open": "開く",
    "search": "検索",
    "cancel": "キャンセル",
    "retry": "再試行",
    "list": "一覧の切替",
    "select": "選択",
    "back": "戻る",
    "scroll": "スクロール",
    "follow": "追従",
    "select a job": "ジョブを選択",
    "open the job: steps, tasks and log": "ジョブを開く（工程、タスク、ログ）",
    "previous and next list": "前または次の一覧",
    "running, waiting, needs a look, finished, all": "実行中、待機中、要確認、終了、すべて",
    "search names, kinds, labels, hosts, errors and beginnings of ids": (
        "名前、種類、ラベル、ホスト、エラー、ID の先頭を検索"
    ),
    "end the search": "検索を終了",
    "cancel the job, after a question": "ジョブをキャンセル（確認あり）",
    "retry the failed or cancelled job": "失敗またはキャンセルしたジョブを再試行",
    "draw the screen again": "画面を再描画",
    "show or hide these keys": "この一覧を表示または非表示",
    # one job on the whole terminal
    "back to the list": "一覧に戻る",
    "scroll the log by a line": "ログを 1 行スクロール",
    "scroll the log by a screen": "ログを 1 画面スクロール",
    "the beginning of the log": "ログの先頭",
    "follow the log": "ログの最新の行に追従",
    "no output yet": "出力はまだありません",
    "result": "結果",
    "created {time}": "作成 {time}",
    "started {time}": "開始 {time}",
    "ended {time}": "終了 {time}",
    "{n} line below; End follows | {n} lines below; End follows": "下に {n} 行（End で追従）",
    "{n} bytes of the log are missing here": "ここはログの {n} バイトが欠けています",
    # the help of all commands
    "Report the progress of long-running jobs to watchers, live.": (
        "時間のかかるジョブの進捗を、見ている人にリアルタイムで伝えます。"
    ),
    "Examples:": "例:",
    "Example:": "例:",
    "run the daemon": "デーモンを実行",
    "submit a file and watch its job": "ファイルを送信し、そのジョブを表示",
    "watch all jobs": "すべてのジョブを表示",
    "run a command as a job": "コマンドをジョブとして実行",
    "Show the version and exit.": "バージョンを表示して終了します。",
    "The daemon to talk to.": "接続するデーモン。",
    "The key, if the daemon requires one. Other users of this machine can see it here.": (
        "デーモンがキーを必要とする場合のキー。ここに書くと、このマシンのほかのユーザーに見えます。"
    ),
    "A file that contains the key.": "キーを書いたファイル。",
    "The directory of the jobs and their files.  [default: $STATE_DIRECTORY, otherwise ./progressd-data]": (
        "ジョブとそのファイルのディレクトリ。  [既定: $STATE_DIRECTORY、なければ ./progressd-data]"
    ),
    "The config file, instead of /etc/progressd/progressd.toml.": (
        "/etc/progressd/progressd.toml の代わりに使う設定ファイル。"
    ),
    "Only jobs with this status; repeatable.": "この状態のジョブだけ。繰り返し指定できます。",
    "Only jobs of this kind, such as pdf or rsync.": "この種類のジョブだけ（pdf、rsync など）。",
    "Only jobs with this label; repeatable.": "このラベルのジョブだけ。繰り返し指定できます。",
    "Only jobs of this host.": "このホストのジョブだけ。",
    "Only jobs that contain every word, in the name, kind, file name, labels, error or id.": (
        "名前、種類、ファイル名、ラベル、エラー、ID のどれかに、すべての語を含むジョブだけ。"
    ),
    # of operators' commands, only the line in the list
    "Run the daemon until Ctrl-C or SIGTERM.": "デーモンを実行します（Ctrl-C または SIGTERM まで）。",
    "Copy the database of a daemon, running or not, to FILE.": "デーモンのデータベースを FILE にコピーします。",
    "Check the database and the files of a daemon, running or not.": ("デーモンのデータベースとファイルを検査します。"),
    "Add, list and revoke the keys of a daemon on this machine.": (
        "このマシンのデーモンのキーを追加、一覧、取り消しします。"
    ),
    "Create and print a token to watch one job, or all jobs, of a daemon on this machine.": (
        "このマシンのデーモンのジョブを見るためのトークンを作成します。"
    ),
    "Print the settings in force and the origin of each.": "有効な設定と、その出所を表示します。",
    "Install the daemon as a service that starts with the machine.": (
        "デーモンを、マシンと一緒に起動するサービスとしてインストールします。"
    ),
    "Stop the service and remove it.": "サービスを停止して削除します。",
    "Find problems that keep the daemon from working on this machine.": (
        "このマシンでデーモンが動かない原因を探します。"
    ),
    # submit
    "Submit files to the daemon and print the id of each job.": (
        "ファイルをデーモンに送信し、各ジョブの ID を出力します。"
    ),
    "The exit status is 1 if the daemon rejects a file. With --watch, it is also 1 if a job fails or is cancelled.": (
        "デーモンがファイルを受け付けなければ、終了ステータスは 1 です。--watch を付けると、"
        "ジョブが失敗またはキャンセルされた場合も 1 です。"
    ),
    "An option of the pipeline; repeatable.": "パイプラインのオプション。繰り返し指定できます。",
    "The pipeline to run.  [default: pdf]": "実行するパイプライン。  [既定: pdf]",
    "A label for the jobs; repeatable.": "ジョブに付けるラベル。繰り返し指定できます。",
    "Jobs with a higher priority start first.": "優先度の高いジョブから先に開始します。",
    "Watch the jobs until all have finished.": "すべて終わるまでジョブを表示します。",
    # run
    "Run a command, and report it as a job, with the progress that its output shows.": (
        "コマンドを実行し、出力から読み取った進捗とともに、ジョブとして報告します。"
    ),
    "The command keeps its terminal, its input and output, and its exit status. It runs even if no daemon can be "
    "reached. Its output is kept as the log of the job. Cancelling the job stops the command. The command's "
    "environment contains PROGRESSD_JOB_ID, PROGRESSD_URL and PROGRESSD_KEY, so that it can report its progress "
    "itself.": (
        "コマンドのターミナル、入出力、終了ステータスはそのままです。デーモンに接続できなくてもコマンドは実行されます。"
        "出力はジョブのログとして保存されます。ジョブをキャンセルすると、コマンドは停止します。コマンドの環境変数には "
        "PROGRESSD_JOB_ID、PROGRESSD_URL、PROGRESSD_KEY があり、コマンド自身が進捗を報告することもできます。"
    ),
    "The name of the job.  [default: the command, without secrets]": (
        "ジョブの名前。  [既定: 機密情報を除いたコマンド]"
    ),
    "A label of the job, in addition to host and user.": "host と user に加えて、ジョブに付けるラベル。",
    "A regular expression that finds the progress in the output, with the named groups current and total, or "
    "percent, or fraction. The group step is optional.": (
        "出力から進捗を読み取る正規表現。名前付きグループ current と total、または percent、または fraction を"
        "使います。グループ step は省略できます。"
    ),
    'Use the preset of this program. "none": do not read the output.': (
        "このプログラムのプリセットを使います。「none」なら出力を読み取りません。"
    ),
    "Add no options to the command.": "コマンドにオプションを追加しません。",
    "Do not keep the command's output in the job's log.": "コマンドの出力をジョブのログに保存しません。",
    "Print where the progress would be found, and run nothing.": (
        "どこから進捗を読み取るかを表示し、何も実行しません。"
    ),
    "At the end, print where the progress was found.": "終了時に、どこから進捗を読み取ったかを表示します。",
    "Seconds without contact until the job is shown as stalled. After three times as long, it fails.": (
        "連絡がないとき、ジョブを「応答なし」とみなすまでの秒数。その 3 倍の時間が過ぎると失敗になります。"
    ),
    "Seconds without contact until a job is shown as stalled. After three times as long, it fails.": (
        "連絡がないとき、ジョブを「応答なし」とみなすまでの秒数。その 3 倍の時間が過ぎると失敗になります。"
    ),
    # attach
    "Report running processes as jobs, until they end.": "実行中のプロセスを、終わるまでジョブとして報告します。",
    "PROCESS is a process id, the name of a program, or a systemd unit. The progress is the position in the largest "
    "file that the process, or a process that it has started, reads or writes. The command prints the ids of the "
    "jobs.": (
        "PROCESS は、プロセス ID、プログラムの名前、または systemd のユニットです。進捗は、そのプロセスやその子プロセス"
        "が読み書きしている最大のファイルの中の位置です。ジョブの ID を出力します。"
    ),
    "With --follow, a job also covers processes that outlive the process that started them. The command attaches to "
    "matching programs and units whenever they start, until Ctrl-C.": (
        "--follow を付けると、起動したプロセスが終わった後に残るプロセスもジョブに含めます。"
        "該当するプログラムやユニットが起動するたびに、Ctrl-C まで接続を続けます。"
    ),
    "Also attach to processes that start later.": "後から起動するプロセスにも接続します。",
    "Watch the jobs.": "ジョブを表示します。",
    "The name of the jobs.  [default: the command, without secrets]": (
        "ジョブの名前。  [既定: 機密情報を除いたコマンド]"
    ),
    "A label of the jobs, in addition to host, user, pid and unit.": (
        "host、user、pid、unit に加えて、ジョブに付けるラベル。"
    ),
    # presets
    "List the programs whose progress is known.": "進捗を読み取れるプログラムの一覧を表示します。",
    "A preset says how a program writes its progress, and which options to add to its command. progressd run and "
    "pipelines use the preset that has the name of the program. Your own presets are files NAME.toml in "
    "~/.config/progressd/presets, and for all users and the daemon in /etc/progressd/presets.": (
        "プリセットには、プログラムが進捗をどう出力するかと、コマンドに追加するオプションが書かれています。"
        "progressd run とパイプラインは、プログラムと同じ名前のプリセットを使います。自分のプリセットは "
        "~/.config/progressd/presets に、全ユーザーとデーモン用のプリセットは /etc/progressd/presets に、"
        "NAME.toml というファイルで置きます。"
    ),
    "Print the file of a preset. Copy it to change it.": (
        "プリセットのファイルを出力します。変更するには、これをコピーします。"
    ),
    "Print the progress that is found in each line or redraw of recorded output; - reads standard input.": (
        "記録した出力の各行と再描画から読み取った進捗を表示します。- は標準入力を読みます。"
    ),
    "A transcript is the output of a program, recorded for example with script(1). It must contain the carriage "
    "returns.": ("記録とは、script(1) などで保存したプログラムの出力です。復帰文字（CR）を含んでいる必要があります。"),
    "The preset to test.  [default: none, only general patterns]": (
        "試すプリセット。  [既定: なし（一般的なパターンだけ）]"
    ),
    # emit
    "Report the progress or the end of a job, or start one.": (
        "ジョブの進捗や終了を報告します。ジョブの開始もできます。"
    ),
    "In a pipeline or a command of progressd run, environment variables identify the job and the daemon.": (
        "パイプラインや progressd run のコマンドの中では、ジョブとデーモンは環境変数で決まります。"
    ),
    "The job to report on.": "報告するジョブ。",
    "The number of steps that are done.": "済んだ工程の数。",
    "The total number of steps.": "工程の総数。",
    "The progress in percent, instead of steps.": "工程の数の代わりに、進捗をパーセントで指定します。",
    "What the steps count: B for bytes, pages, or any short word.": (
        "工程の単位。バイトなら B、ほかは pages など任意の短い語。"
    ),
    "The current phase of the job. The steps may start again in each phase.": (
        "ジョブの現在の段階。工程の数は段階ごとに最初から数えられます。"
    ),
    "The remaining time, if the script knows it better than the daemon can estimate it.": (
        "残り時間。デーモンの推定より正確に分かる場合に指定します。"
    ),
    "Report on a task of the job, such as one of several downloads. STEP is its name.": (
        "複数のダウンロードの 1 つなど、ジョブの中のタスクについて報告します。STEP はその名前です。"
    ),
    "The job, or the task, has completed.": "ジョブまたはタスクが完了しました。",
    "The job, or the task, has failed.": "ジョブまたはタスクが失敗しました。",
    "End the job according to this exit status, unless it has already ended.": (
        "まだ終わっていなければ、この終了ステータスに応じてジョブを終了します。"
    ),
    "Register and start a job with this name, and print its id.": (
        "この名前のジョブを登録して開始し、ID を出力します。"
    ),
    "With --new: show the job as stalled after this time without a report. After three times as long, it fails.": (
        "--new と併用: 報告がこの時間なければ「応答なし」と表示します。その 3 倍の時間が過ぎると失敗になります。"
    ),
    "With --new: print shell commands for eval, so that the job ends with the script.": (
        "--new と併用: eval 用のシェルコマンドを出力します。スクリプトが終わるとジョブも終わります。"
    ),
    "The Unix socket of the daemon, instead of --url. It needs no key.": (
        "--url の代わりに使う、デーモンの Unix ソケット。キーは不要です。"
    ),
    # watch
    "Watch all jobs in a list, or one job until it ends.": (
        "すべてのジョブを一覧で、または 1 つのジョブを終わるまで表示します。"
    ),
    "On a terminal, the list takes the whole screen: press ? for its keys and q to quit. In a pipe, all jobs become "
    "one line per change: time, name, change and job id, separated by tabs. JOB shows a live bar on a terminal, and "
    "one line per message in a pipe. Both reconnect automatically and miss no state change.": (
        "ターミナルでは、一覧が画面全体に表示されます。? でキー操作を表示し、q で終了します。パイプでは、変化ごとに"
        " 1 行（時刻、名前、変化、ジョブの ID をタブで区切ったもの）を英語で出力します。JOB を指定すると、"
        "ターミナルでは進捗バーを、パイプではメッセージごとに 1 行を出力します。どちらも自動的に再接続し、状態の変化を"
        "取りこぼしません。"
    ),
    "The exit status is 0 if the job completed or you quit, 1 if the job failed or was cancelled, 130 if you "
    "interrupt the watch.": (
        "終了ステータスは、ジョブが完了するか q で終了すると 0、ジョブが失敗またはキャンセルされると 1、"
        "表示を中断すると 130 です。"
    ),
    "Print each message as it arrives: one line of JSON.": "届いたメッセージをそのまま、1 行の JSON で出力します。",
    "Receive the progress of each job at most once in this time.": (
        "各ジョブの進捗を、多くてもこの時間に 1 回だけ受け取ります。"
    ),
    # logs
    "Print the log of a job: its standard output and standard error.": (
        "ジョブのログ（標準出力と標準エラー出力）を出力します。"
    ),
    "Both streams are printed to standard output, with their colours if it is a terminal. If a log is long, only its "
    "beginning and its end are kept, and a line says how much is missing. If the connection breaks, the command "
    "reconnects, and no line is missing or printed twice.": (
        "どちらも標準出力に出力します。ターミナルなら色も付きます。長いログは先頭と末尾だけが保存され、"
        "欠けている量が 1 行で示されます。接続が切れても自動的に再接続し、行が欠けたり重複したりすることはありません。"
    ),
    "Keep printing new lines until the job has finished.": "ジョブが終わるまで、新しい行を出力し続けます。",
    "Begin with the last N lines.": "最後の N 行から始めます。",
    "Begin at a time (2026-01-31T12:00), or this long ago (10m).": (
        "この時刻（2026-01-31T12:00）から、またはこの時間だけ前（10m）から始めます。"
    ),
    "Print the time of each line.": "各行の時刻も出力します。",
    # jobs
    "List jobs, the newest first.": "ジョブの一覧を、新しい順に表示します。",
    "The maximum number of jobs.": "ジョブの最大数。",
    "Print each job as one line of JSON.": "各ジョブを 1 行の JSON で出力します。",
    "Print every job as one line of JSON, the oldest first.": (
        "すべてのジョブを、古い順に 1 行ずつ JSON で出力します。"
    ),
    "It reads the database of a daemon, running or not, and prints all jobs in the format of progressd jobs --json. "
    "Their progress may be up to a second old.": (
        "デーモンが動いていなくても、そのデータベースを読み、全ジョブを progressd jobs --json の形式で出力します。"
        "進捗は最大 1 秒前のものです。"
    ),
    # show
    "Show everything about a job: its times, progress, tasks, steps, labels, result, error and the end of its log.": (
        "ジョブのすべての情報（時刻、進捗、タスク、工程、ラベル、結果、エラー、ログの末尾）を表示します。"
    ),
    "Print the job as one line of JSON.": "ジョブを 1 行の JSON で出力します。",
    # cancel, retry, delete
    "Cancel a job that has not finished.": "終わっていないジョブをキャンセルします。",
    "Retry a job that failed or was cancelled; print the id of the new job.": (
        "失敗またはキャンセルしたジョブを再試行し、新しいジョブの ID を出力します。"
    ),
    "Only jobs of a pipeline can be retried. The exit status is that of progressd submit.": (
        "再試行できるのはパイプラインのジョブだけです。終了ステータスは progressd submit と同じです。"
    ),
    "Watch the new job until it has finished.": "新しいジョブを、終わるまで表示します。",
    "Delete finished jobs with their files.": "終了したジョブを、ファイルとともに削除します。",
    "Cancel a running job first. The exit status is 1 if a job was not deleted.": (
        "実行中のジョブは、先にキャンセルしてください。削除できないジョブがあると、終了ステータスは 1 です。"
    ),
    # completion
    "Print the completion script for a shell.": "シェルの補完スクリプトを出力します。",
    "bash, in ~/.bashrc:": "bash（~/.bashrc に書く）:",
    "zsh, in ~/.zshrc, after compinit:": "zsh（~/.zshrc の compinit の後に書く）:",
    # click
    "Usage:": "使い方:",
    "Usage: ": "使い方: ",
    "Commands": "コマンド",
    "Show this message and exit.": "この説明を表示して終了します。",
    "default: {default}": "既定: {default}",
    "env var: {var}": "環境変数: {var}",
    "required": "必須",
    "Aborted!": "中止しました。",
    "Try '{command} {option}' for help.": "説明は「{command} {option}」で表示できます。",
    "Missing command.": "コマンドを指定してください。",
    "Missing argument": "引数がありません:",
    "Missing option": "オプションがありません",
    "Missing parameter": "引数がありません",
    "No such option {name!r}.": "{name!r} というオプションはありません。",
    "No such command {name!r}.": "{name!r} というコマンドはありません。",
    "Did you mean {possibility}?": "もしかして: {possibility}",
    "(Did you mean one of: {possibilities}?)": "（もしかして: {possibilities}）",
    "Got unexpected extra argument ({args})": "余分な引数があります（{args}）",
    "Got unexpected extra arguments ({args})": "余分な引数があります（{args}）",
    "Invalid value: {message}": "値が正しくありません: {message}",
    "Invalid value for {param_hint}: {message}": "{param_hint} の値が正しくありません: {message}",
    "Option {name!r} does not take a value.": "オプション {name!r} は値を取りません。",
    "Option {name!r} requires an argument.": "オプション {name!r} には値が必要です。",
    "Choose from:\n\t{choices}": "次から選んでください:\n\t{choices}",
    "{value!r} is not {choice}.": "{value!r} は {choice} ではありません。",
    "{value!r} is not one of {choices}.": "{value!r} は使えません。{choices} から選んでください。",
    "{value!r} is not a valid {number_type}.": "{value!r} は正しい数値（{number_type}）ではありません。",
    "{value} is not in the range {range}.": "{value} は範囲 {range} にありません。",
    "file": "ファイル",
    "directory": "ディレクトリ",
    "path": "パス",
    "{name} {filename!r} does not exist.": "{name} {filename!r} がありません。",
    "{name} {filename!r} is a file.": "{name} {filename!r} はファイルです。",
    "{name} {filename!r} is a directory.": "{name} {filename!r} はディレクトリです。",
    "{name} {filename!r} is not readable.": "{name} {filename!r} を読み取れません。",
    "{name} {filename!r} is not writable.": "{name} {filename!r} に書き込めません。",
}

# What the command line and the Python client report in English. `languages/sentences.ja.json` of the page has the
# sentences of the daemon.
SENTENCES: Final = {
    # errors of the command line
    "no job id begins with {start}": "ID が {start} で始まるジョブはありません",
    "no job id begins with {start} (among the newest {n} jobs)": (
        "ID が {start} で始まるジョブはありません（新しい {n} 件の中）"
    ),
    "{n} job ids begin with {start}: {ids} (give more characters)": (
        "ID が {start} で始まるジョブは {n} 件あります: {ids}（もっと長く指定してください）"
    ),
    "{id} is not a job id: give the id, or at least its first eight characters": (
        "{id} はジョブの ID ではありません。ID か、その先頭 8 文字以上を指定してください"
    ),
    "{text} is not of the form NAME=VALUE, such as {example}": (
        "{text} は NAME=VALUE の形ではありません（{example} など）"
    ),
    "there is no state directory {path}: name the daemon's with --state-dir, such as --state-dir {example}": (
        "状態ディレクトリ {path} がありません。デーモンのディレクトリを --state-dir で指定してください"
        "（--state-dir {example} など）"
    ),
    "this command needs {program}, which is not installed ({hint})": (
        "このコマンドに必要な {program} がインストールされていません（{hint}）"
    ),
    "cannot write the output: {reason}": "出力を書き込めません: {reason}",
    "give only one of --lines and --since": "--lines と --since は、どちらか一方だけを指定してください",
    "--status, --kind, --label, --host and --search select among all jobs: omit JOB": (
        "--status、--kind、--label、--host、--search は全ジョブから選ぶためのものです。JOB を省いてください"
    ),
    "--task does not combine with --percent, --exit and --new": ("--task は --percent、--exit、--new と併用できません"),
    "--unit, --phase and --eta only go with progress, not with an end or a new job": (
        "--unit、--phase、--eta は進捗と一緒に指定します（終了や新しいジョブとは併用できません）"
    ),
    "--new chooses the id of the job: leave out --job": "--new はジョブの ID を自動で決めます。--job を省いてください",
    "{option} needs --new": "{option} には --new が必要です",
    "no job given: use --job, or set PROGRESSD_JOB_ID": (
        "ジョブが指定されていません。--job か PROGRESSD_JOB_ID で指定してください"
    ),
    "report one of these: progress, --completed, --failed, --exit or --new": (
        "進捗、--completed、--failed、--exit、--new のうち、どれか 1 つを報告してください"
    ),
    "report either --completed or --failed": "--completed と --failed は、どちらか一方だけを指定してください",
    "nan is not in the range {range}.": "nan は範囲 {range} にありません。",
    "nan is not a number of seconds.": "nan は秒数ではありません。",
    "there is no preset {name} (progressd presets lists them)": (
        "プリセット {name} はありません（一覧は progressd presets）"
    ),
    "there is no preset {name}; did you mean {guess}? (progressd presets lists them)": (
        "プリセット {name} はありません。もしかして: {guess}（一覧は progressd presets）"
    ),
    "the preset {path} is invalid: {reason}": "プリセット {path} が正しくありません: {reason}",
    "cannot read the preset {path}: {reason}": "プリセット {path} を読み取れません: {reason}",
    "--progress-pattern: {reason}": "--progress-pattern: {reason}",
    "no process is called {name}": "{name} という名前のプロセスはありません",
    # progressd run
    "{program}: there is no such program": "{program}: プログラムがありません",
    "progress from: {source}": "進捗の出所: {source}",
    "progress from: nowhere": "進捗の出所: なし",
    "progress from: general patterns": "進捗の出所: 一般的なパターン",
    "progress from: the pattern of --progress-pattern": "進捗の出所: --progress-pattern のパターン",
    "progress from: reports of the command; its output is not read": (
        "進捗の出所: コマンドからの報告（出力は読み取りません）"
    ),
    "progress from: numbers in the output, such as 42% or 3/12; there is no preset for this command": (
        "進捗の出所: 出力の中の 42% や 3/12 などの数（このコマンドのプリセットはありません）"
    ),
    "progress from: the position in the file that it reads (estimate)": (
        "進捗の出所: 読んでいるファイルの中の位置（推定）"
    ),
    "adds {arguments} (not with --no-adapt)": "追加: {arguments}（--no-adapt を付けると追加しません）",
    "{name} shows its progress only on a terminal": "{name} はターミナルでだけ進捗を表示します",
    "cannot pass on the output of the command: {reason}": "コマンドの出力を渡せません: {reason}",
    "cannot find the processes of the command: {reason}": "コマンドのプロセスが見つかりません: {reason}",
    "cannot end {processes}": "プロセス {processes} を終了できません",
    "ended {n} process of the command": "コマンドのプロセスを {n} 個終了しました",
    "ended {n} processes of the command": "コマンドのプロセスを {n} 個終了しました",
    "not permitted to send {signal} to {processes}": "{processes} に {signal} を送る権限がありません",
    "job {id} was cancelled: stopping the command": "ジョブ {id} がキャンセルされたため、コマンドを停止します",
    "job {id} was cancelled": "ジョブ {id} はキャンセルされました",
    "job {id} has failed: nothing was reported for too long": (
        "ジョブ {id} は、長い間報告がなかったため失敗になりました"
    ),
    "the command has ended; waiting up to {n} s for the daemon (Ctrl-C stops the wait)": (
        "コマンドは終了しました。デーモンを最大 {n} 秒待っています（Ctrl-C で中止）"
    ),
    "waiting up to {n} s for the daemon (Ctrl-C stops the wait)": (
        "デーモンを最大 {n} 秒待っています（Ctrl-C で中止）"
    ),
    "the daemon did not receive the end of the log": "ログの末尾がデーモンに届きませんでした",
    "the daemon did not receive the end of the job": "ジョブの終了がデーモンに届きませんでした",
    "the daemon answers again": "デーモンが再び応答しています",
    "the log of the job is not kept: {reason}": "ジョブのログは保存されません: {reason}",
    # progressd attach
    "there is no process {id}": "プロセス {id} はありません",
    "{process} has ended": "{process} は終了しました",
    "{process} has ended; waiting up to {n} s for the daemon (Ctrl-C stops the wait)": (
        "{process} は終了しました。デーモンを最大 {n} 秒待っています（Ctrl-C で中止）"
    ),
    "cannot see the open files of {process}: permission denied (use sudo)": (
        "{process} が開いているファイルを見る権限がありません（sudo を使ってください）"
    ),
    "job {id} was cancelled; {process} continues": "ジョブ {id} はキャンセルされましたが、{process} は続行します",
    # the connection to the daemon
    "no daemon answers at {url}; start one with: progressd serve": (
        "{url} でデーモンが応答しません。progressd serve で起動できます"
    ),
    "no daemon answers at {url}": "{url} でデーモンが応答しません",
    "no daemon answers at {path}: {reason}": "{path} でデーモンが応答しません: {reason}",
    "timed out": "時間内に応答がありません",
    "{url} did not answer within {n} seconds": "{url} から {n} 秒以内に応答がありませんでした",
    "the connection to {url} broke: {reason}": "{url} との接続が切れました: {reason}",
    "the daemon at {path} closed the connection": "{path} のデーモンが接続を閉じました",
    "the daemon closed the stream: {why} (close code {code})": "デーモンが接続を閉じました: {why}（コード {code}）",
    "{url} is not the address of a daemon: use a URL such as {example}": (
        "{url} はデーモンのアドレスではありません。{example} のような URL を指定してください"
    ),
    "{url} is not the address of a daemon: {reason}": "{url} はデーモンのアドレスではありません: {reason}",
    "{url} is not progressd: it does not speak HTTP (TLS needs https://)": (
        "{url} は progressd ではありません。HTTP に対応していません（TLS なら https://）"
    ),
    "{url} is not progressd: it sent no JSON": "{url} は progressd ではありません（応答が JSON ではありません）",
    "{url} is not progressd: it sent more than {n} bytes": (
        "{url} は progressd ではありません（応答が {n} バイトを超えました）"
    ),
    "{url} answered with HTTP status {n}": "{url} が HTTP ステータス {n} を返しました",
    "{url} answered with HTTP status {n}; this does not seem to be progressd (check the URL)": (
        "{url} が HTTP ステータス {n} を返しました。progressd ではないようです（URL を確認してください）"
    ),
    "{path} is not the socket of progressd": "{path} は progressd のソケットではありません",
    "the certificate of {url} is not trusted: {why} (set SSL_CERT_FILE=FILE to trust the certificate in a file)": (
        "{url} の証明書は信頼されていません: {why}（ファイルの証明書を信頼するには SSL_CERT_FILE=FILE を設定）"
    ),
    "the certificate of {url} is not trusted: {why}": "{url} の証明書は信頼されていません: {why}",
    "{url} does not speak TLS: use {other}": "{url} は TLS に対応していません。{other} を使ってください",
    "TLS with {url} failed: {why}": "{url} との TLS 接続に失敗しました: {why}",
    "{path} does not contain a key": "{path} にキーがありません",
    "cannot read the key in {path}: {reason}": "{path} のキーを読み取れません: {reason}",
    "the key is empty": "キーが空です",
    "the key in {path} is empty": "{path} のキーが空です",
    "the key is invalid: it contains spaces or other characters that a key cannot have": (
        "キーが正しくありません。空白など、キーに使えない文字が含まれています"
    ),
    "the key in {path} is invalid: it contains spaces or other characters that a key cannot have": (
        "{path} のキーが正しくありません。空白など、キーに使えない文字が含まれています"
    ),
    "{name} became shorter during the upload": "{name} が送信中に短くなりました",
}
