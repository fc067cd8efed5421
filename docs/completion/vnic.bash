# bash completion for vnic. The command itself knows what could come next; names of adapters come from the daemon.
#
#   source docs/completion/vnic.bash

_vnic()
{
    local word offered
    # Colons are part of words here: file:PATH, addresses.
    local line=${COMP_LINE:0:COMP_POINT}
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[-1]}
    # What bash takes for a word of its own begins behind the last colon.
    local skip=${word%"${word##*:}"}

    COMPREPLY=()
    if [[ $word == file:* ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "${word#file:}")
        return
    fi
    while IFS= read -r offered; do
        if [[ $offered == @files ]]; then
            mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$word")
        else
            COMPREPLY+=("${offered#"$skip"}")
        fi
    done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace
}

complete -o filenames -F _vnic vnic
