(ns luc
  "A history of `jepsen run` as Jepsen's and Elle's checkers expect it: other names, and of each value what they look at. It judges
  nothing, so that what is said of a history is said by code that others wrote."
  (:require [clojure.edn :as edn] [clojure.string :as str]
            [jepsen.history :as h])
  (:import (java.io PushbackReader FileReader)))

(defn load-ops "Every form of history.edn, as it stands." [file]
  (with-open [r (PushbackReader. (FileReader. ^String file))]
    (doall (take-while some? (repeatedly #(edn/read {:eof nil} r))))))

(defn of [workload ops] (filter #(= workload (:workload %)) ops))

(defn invocations "Each operation's index -> its invocation." [ops]
  (let [hist (h/history ops)]
    (into {} (for [op hist :when (not (h/invoke? op))] [(:index op) (h/invocation hist op)]))))

;; ---- set: element = the number in the server's name ("set-12" -> 12). Jepsen's sets only grow, so what anybody tried to delete
;; (other than in vain) is left out, of adds and of reads alike.
(defn number [name] (parse-long (subs name (count "set-"))))

(defn set-ops
  "Without more: all of it. With :final, of the reads only the final ones; with a :site, only those of that site."
  ([ops] (set-ops ops {}))
  ([ops {:keys [final site]}]
   (let [ops  (of "set" ops)
         inv  (invocations ops)
         name-of (fn [op] (number (:name (:value (get inv (:index op) op)))))
         ids  (into {} (for [op ops :when (and (= :add (:f op)) (= :ok (:type op)))] [(:id (:value op)) (name-of op)]))
         gone (set (for [op ops :when (and (= :delete (:f op)) (#{:ok :info} (:type op)))]
                     (ids (:id (:value (inv (:index op)))))))
         shown (fn [{:keys [servers deleting]}] (remove gone (map (comp number second) (concat servers deleting))))]
     (for [op ops
           :let [last? (= :read-final (:f op))]
           :when (case (:f op)
                   :add               (not (gone (name-of op)))
                   (:read :read-final) (or (not final) (and last? (or (nil? site) (= site (:site op)))))
                   :delete            false)]
       (if (= :add (:f op))
         (assoc op :value (name-of op))
         (assoc op :f :read :value (when (= :ok (:type op)) (shown (:value op)))))))))

;; ---- disks that were lost or rolled back: from when only that disk held what was acknowledged there until its replica has been retired
;; and another has joined, nobody promised anything there (`PROTOCOL.md`, M4). The nemesis says so, with whose clients those were.
(defn excuses [ops]
  (let [ends (into {} (for [op ops :when (and (= :nemesis (:process op)) (= :stop (:f op)) (= :info (:type op)))]
                        [(:id (:value op)) (:time op)]))]
    (for [op ops :when (and (= :nemesis (:process op)) (= :start (:f op)) (= :info (:type op)))
          {:keys [processes after]} (:excused (:value op))]
      {:processes (set processes) :from after :to (get ends (:id (:value op)) Long/MAX_VALUE)})))

(defn excused? [excuses op]
  (some (fn [{:keys [processes from to]}] (and (processes (:process op)) (<= from (:time op) to))) excuses))

;; ---- registers: one answer = one transaction of reads; a write = a transaction of one write. "0" is the initial state, which
;; Elle calls nil. A final read is several answers, one per server: so many transactions, one after the other.
(defn server [register] (first (str/split register #"/")))

(defn txns [workload ops session]
  (let [excuses (excuses ops)
        ops (of workload ops)
        inv (invocations ops)
        mop (fn [[k v]] [:r k (when (not= "0" v) v)])]
    (->> ops
         (mapcat (fn [op]
                   (let [i   (or (inv (:index op)) op)
                         ok? (and (= :ok (:type op)) (not (excused? excuses op)))
                         op  (if (and (= :ok (:type op)) (not ok?)) (assoc op :type :info) op)
                         op  (assoc op :f :txn :process (session i) :was (:index op))
                         txn (fn [mops] (assoc op :value (vec mops)))]
                     (case (:f i)
                       :write [(txn [[:w (:register (:value i)) (:value (:value i))]])]
                       :read  [(txn (when ok? (map mop (:read (:value op)))))]
                       :final (if ok?
                                (let [[one & more] (vals (group-by (comp server key) (:read (:value op))))]
                                  (cons (txn (map mop one))
                                        (mapcat (fn [answer] [(assoc (txn []) :type :invoke) (txn (map mop answer))]) more)))
                                [(txn [])])))))
         (map-indexed (fn [at op] (assoc op :index at))))))

(defn process "A session is a process." [i] (:process i))
(defn causal-session "A session begins anew when the runner says so." [i]
  (+ (* 1000 (:process i)) (:session (:value i))))

(defn single "The same, with each register that an answer shows as a transaction of its own: one micro-operation each." [txns]
  (->> txns
       (mapcat (fn [op]
                 (let [[one & more] (:value op)]
                   (if (and (= :ok (:type op)) more)
                     (cons (assoc op :value [one])
                           (mapcat (fn [mop] [(assoc op :type :invoke :value []) (assoc op :value [mop])]) more))
                     [op]))))
       (map-indexed (fn [at op] (assoc op :index at)))))
